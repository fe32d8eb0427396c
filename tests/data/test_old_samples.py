"""Folders of samples that an earlier version made, and runs that still read what is replaced."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from raw_videos import small_config, write_moving_video

from cosmos_hydra.data.plan import samples_in
from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.data.readers import reading
from cosmos_hydra.data.store import SampleStore, open_store
from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import read_sealed, sealed

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with five raw videos."""
    for number in range(5):
        write_moving_video(tmp_path / "raw" / f"{number}.mp4", seed=number)
    return tmp_path


def as_version_1(store: SampleStore) -> None:
    """Make of a folder what the first version would have left: samples 0, 1, ..."""
    folder, manifest = store.layout.folder, store.manifest
    for number, entry in enumerate(manifest["samples"]):
        info = read_sealed(folder / f"{entry['id']}.info.json")
        del info["sha256"]
        names = {name: name.replace(entry["id"], str(number)) for name in info["files"]}
        for name, new in names.items():
            (folder / name).rename(folder / new)
        info["files"] = {names[name]: digest for name, digest in info["files"].items()}
        (folder / f"{entry['id']}.info.json").unlink()
        (folder / f"{number}.info.json").write_bytes(sealed(info))
        entry["id"] = str(number)
    (folder / manifest.pop("fitted_tokenizer")).rename(folder / "tokenizer.safetensors")
    for name in ("left_out", "broken"):
        del manifest[name]
    del manifest["settings"]["data"]["max_overlap"]
    store.layout.manifest.write_text(json.dumps({**manifest, "format_version": 1}))
    store.layout.hashes.unlink(missing_ok=True)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "hashes.json"
    }


def test_samples_of_an_earlier_version_are_read_and_kept(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    as_version_1(prepare(small_config(root), CPU))
    before = content(root / "samples")
    old = open_store(str(root / "samples"))
    assert sorted(old.captions) == sorted(map(str, range(len(old.captions))))
    assert old.fitted_tokenizer == root / "samples/tokenizer.safetensors"
    for name in old.captions:
        old.load(name)
    caplog.set_level(logging.INFO)
    prepare(small_config(root), CPU)
    assert caplog.messages == [
        f"samples in {root / 'samples'} are of an earlier version and are kept",
        f"samples in {root / 'samples'} are up to date",
    ]
    assert content(root / "samples") == before


def test_samples_of_an_earlier_version_made_otherwise_are_refused(root: Path) -> None:
    as_version_1(prepare(small_config(root), CPU))
    before = content(root / "samples")
    with pytest.raises(StageError) as caught:
        prepare(small_config(root, "data.fit=pad"), CPU)
    assert str(caught.value) == (
        f"data.path={root / 'samples'} holds samples of an earlier version, made otherwise "
        f"(data.fit: crop -> pad); choose another data.path or remove the folder"
    )
    (root / "raw" / "0.txt").write_text("another caption")
    with pytest.raises(StageError, match=r"made otherwise \(video 0.mp4\); choose"):
        prepare(small_config(root), CPU)
    assert content(root / "samples") == before


def test_what_a_run_reads_is_not_removed_before_it_ends(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = prepare(small_config(root), CPU)
    padded = small_config(root, "data.fit=pad")
    caplog.set_level(logging.INFO)
    with reading(old.layout), reading(old.layout):
        new = prepare(padded, CPU)
        assert caplog.messages[-1] == (
            f"10 samples in {root / 'samples'} are no longer wanted but a run reads them; "
            f"they are kept until the same command is given after its end"
        )
        for name in old.captions:
            old.load(name)
    assert not old.layout.readers.exists()
    caplog.clear()
    assert prepare(padded, CPU).content_hash == new.content_hash
    assert "removed 10 samples that are no longer wanted" in caplog.messages
    assert set(samples_in(new.layout)) == set(new.captions)
    caplog.clear()
    prepare(padded, CPU)
    assert caplog.messages == [f"samples in {root / 'samples'} are up to date"]


def test_a_reader_whose_samples_were_replaced_is_told(root: Path) -> None:
    old = prepare(small_config(root), CPU)
    prepare(small_config(root, "data.fit=pad"), CPU)
    name = next(iter(old.captions))
    with pytest.raises(StageError) as caught:
        old.load(name)
    assert str(caught.value) == (
        f"data.path={root / 'samples'} was preprocessed otherwise while its samples were being "
        f"read, and sample {name} is gone; begin a new run"
    )


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prepare(small_config(root), CPU)

    def refused(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr("cosmos_hydra.data.readers.open_lock", refused)
    with reading(store.layout):
        store.load(store.splits["train"][0])
    shutil.rmtree(root / "samples")
