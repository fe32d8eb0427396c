"""The same command again: a no-op when all is done, goes on when not, refused when changed."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from raw_videos import small_config, write_damaged_video, write_moving_video

from cosmos_hydra.data import prepare as prepare_module
from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.data.writer import SampleWriter
from cosmos_hydra.errors import StageError

CPU = torch.device("cpu")
FORMATS = {
    "safetensors": ["data.format=safetensors"],
    "nemo": ["data.format=nemo", "model.text_tokens=512"],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with six raw videos of two captions."""
    for number in range(6):
        path = tmp_path / "raw" / f"{number}.mp4"
        write_moving_video(path, seed=number)
        path.with_suffix(".txt").write_text(["lifts", "turns"][number % 2])
    return tmp_path


def written(root: Path) -> dict[str, tuple[int, bytes]]:
    """Return time and content of every file that preprocessing made."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_relative_to(root / "raw")
    }


@pytest.mark.parametrize("sample_format", FORMATS)
def test_a_second_run_changes_nothing_and_loads_no_encoder(
    sample_format: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = small_config(root, *FORMATS[sample_format])
    first = prepare(config, CPU)
    before = written(root)
    for name in ("load_text_encoder", "load_tokenizer"):
        monkeypatch.delattr(prepare_module, name)
    caplog.set_level(logging.INFO)
    second = prepare(config, CPU)
    assert written(root) == before
    assert second.content_hash == first.content_hash
    assert second.splits == first.splits
    assert caplog.messages[-1] == f"samples in {root / 'samples'} are up to date"


@pytest.mark.parametrize("sample_format", FORMATS)
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(
    sample_format: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = small_config(root, *FORMATS[sample_format])
    prepare(config, CPU)
    undisturbed = {name: content for name, (_, content) in written(root).items()}
    for path in (root / "samples", *root.glob("samples.*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write = SampleWriter.write

    def interrupted(self: SampleWriter, sample_id: str, *arguments: object) -> None:
        if sample_id == "5":
            # a kill in the middle of a write leaves a temporary file
            (self.layout.folder / ".5.video_latent.99.tmp.pth").write_bytes(b"half")
            raise KeyboardInterrupt
        write(self, sample_id, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, CPU)
    left = written(root)
    assert not [name for name in left if "manifest" in name]
    done = {name for name in left if name.startswith("samples/") and name.endswith("info.json")}
    assert len(done) == 5
    caplog.set_level(logging.INFO)
    prepare(config, CPU)
    assert "going on: 5 of 12 samples are there" in caplog.messages
    after = written(root)
    assert {name: content for name, (_, content) in after.items()} == undisturbed
    assert all(after[name] == left[name] for name in done)


CHANGES = {
    "data.prompt=else": "data.prompt: a robot moves -> else",
    "data.chunks_per_video=3": "data.chunks_per_video: 2 -> 3",
    "data.fit=pad": "data.fit: crop -> pad",
    "data.seed=1": "data.seed: 0 -> 1",
    "model.text_tokens=17": "text_encoder.tokens: 16 -> 17",
    "model.text_dim=512": "text_encoder.dim: 1024 -> 512",
}


def test_changed_settings_are_refused_with_the_difference(root: Path) -> None:
    prepare(small_config(root), CPU)
    before = written(root)
    for override, difference in CHANGES.items():
        with pytest.raises(StageError) as caught:
            prepare(small_config(root, override), CPU)
        assert str(caught.value) == (
            f"data.path={root / 'samples'} holds samples made otherwise ({difference}); "
            f"choose another data.path or remove the folder"
        )
    assert written(root) == before


def test_changed_videos_and_captions_are_refused_by_name(root: Path) -> None:
    prepare(small_config(root), CPU)
    raw = root / "raw"
    (raw / "0.txt").write_text("another caption")
    write_moving_video(raw / "1.mp4", seed=77)
    (raw / "2.mp4").unlink()
    write_moving_video(raw / "6.mp4", seed=6)
    with pytest.raises(StageError) as caught:
        prepare(small_config(root), CPU)
    assert "(video 0.mp4, video 1.mp4, video 2.mp4, video 6.mp4)" in str(caught.value)


def test_an_unfinished_folder_is_not_continued_with_other_settings(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(SampleWriter, "write")
        with pytest.raises(AttributeError):
            prepare(small_config(root), CPU)
    with pytest.raises(StageError, match=r"made otherwise \(data.fit: crop -> pad\)"):
        prepare(small_config(root, "data.fit=pad"), CPU)
    assert len(prepare(small_config(root), CPU).splits["train"]) == 10


def test_moving_the_raw_videos_changes_nothing(root: Path) -> None:
    first = prepare(small_config(root), CPU)
    before = written(root)
    (root / "raw").rename(root / "elsewhere")
    second = prepare(small_config(root, f"data.source={root / 'elsewhere'}"), CPU)
    (root / "elsewhere").rename(root / "raw")
    assert second.content_hash == first.content_hash
    assert written(root) == before


def test_a_video_that_broke_while_decoding_is_not_asked_for_again(root: Path) -> None:
    write_damaged_video(root / "raw" / "damaged.mp4", 60, 20, 60)
    config = small_config(root, "data.chunks_per_video=3")
    prepare(config, CPU)
    before = written(root)
    prepare(config, CPU)
    assert written(root) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": {}}'])
def test_a_damaged_manifest_is_one_clear_error(content: str, root: Path) -> None:
    samples = root / "samples"
    samples.mkdir()
    (samples / "manifest.json").write_text(content)
    with pytest.raises(StageError) as caught:
        prepare(small_config(root), CPU)
    assert str(caught.value) == (
        f"{samples}/manifest.json is damaged; remove {samples} and preprocess again"
    )


def test_a_folder_with_other_files_is_left_alone(root: Path) -> None:
    (root / "samples").mkdir()
    (root / "samples" / "thesis.tex").write_text("years of work")
    with pytest.raises(StageError) as caught:
        prepare(small_config(root), CPU)
    assert str(caught.value) == (
        f"data.path={root / 'samples'} is not empty and not ours; choose another data.path"
    )
    assert list(written(root)) == ["samples/thesis.tex"]
