"""The same command again: a no-op when all is done, goes on when not, redoes what has changed."""

import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from raw_videos import small_config, write_damaged_video, write_moving_video

from cosmos_hydra.data import planner
from cosmos_hydra.data import prepare as prepare_module
from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.data.store import SampleStore, open_store
from cosmos_hydra.data.writer import SampleWriter
from cosmos_hydra.errors import StageError
from cosmos_hydra.models.text import HashTextEncoder
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer

CPU = torch.device("cpu")
FORMATS = {
    "safetensors": ["data.format=safetensors"],
    "nemo": ["data.format=nemo", "model.text_tokens=512"],
}


Encodes = Counter[str]
# fitted tokenizers of other settings stay: a run may be saving one with its checkpoints
KEPT = ("tokenizer-", "hashes.json")


@pytest.fixture
def encodes(monkeypatch: pytest.MonkeyPatch) -> Encodes:
    """Return how many clips and captions have been encoded."""
    found: Encodes = Counter()
    for encoder, kind in ((ToyTokenizer, "clips"), (HashTextEncoder, "captions")):
        encode = encoder.encode

        def counted(self: object, given: object, encode: Any = encode, kind: str = kind) -> object:
            found[kind] += 1
            return encode(self, given)

        monkeypatch.setattr(encoder, "encode", counted)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with six raw videos of two captions."""
    for number in range(6):
        path = tmp_path / "raw" / f"{number}.mp4"
        write_moving_video(path, seed=number)
        path.with_suffix(".txt").write_text(["lifts", "turns"][number % 2])
    return tmp_path


def written(root: Path) -> dict[str, tuple[int, bytes]]:
    """Return time and content of every file that preprocessing made but what it remembers."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not path.is_relative_to(root / "raw")
        and not path.name.endswith("hashes.json")
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
    # no encoder is loaded, no video opened
    for name in ("load_tokenizer", "decode", "encode_captions"):
        monkeypatch.delattr(prepare_module, name)
    for name in ("load_tokenizer", "load_text_encoder", "take_inventory"):
        monkeypatch.delattr(planner, name)
    caplog.set_level(logging.INFO)
    second = prepare(config, CPU)
    assert written(root) == before
    assert second.content_hash == first.content_hash
    assert second.splits == first.splits
    assert caplog.messages == [f"samples in {root / 'samples'} are up to date"]


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
        if len(list(self.layout.folder.glob("*.info.json"))) == 5:
            # a kill in the middle of a write leaves a temporary file
            (self.layout.folder / f".{sample_id}.video_latent.99.tmp.pth").write_bytes(b"half")
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
    assert "samples: 7 to make, 5 there" in caplog.messages
    after = written(root)
    assert {name: content for name, (_, content) in after.items()} == undisturbed
    assert all(after[name] == left[name] for name in done)


# a changed setting, what is said of it, and how many clips and captions are then encoded
CHANGES = {
    "data.prompt=else": ("data.prompt: a robot moves -> else", 0, 0),
    "data.chunks_per_video=3": ("data.chunks_per_video: 2 -> 3", None, 0),
    "data.fit=pad": ("data.fit: crop -> pad", 12, 0),
    "data.height=96": ("data.height: 48 -> 96", 12, 0),
    "data.seed=1": ("data.seed: 0 -> 1", 12, 0),
    "data.held_out=0": ("data.held_out: 0.1 -> 0.0", None, 0),
    "model.text_tokens=17": ("text_encoder.tokens: 16 -> 17", 0, 2),
    "model.text_dim=512": ("text_encoder.dim: 1024 -> 512", 0, 2),
}


@pytest.mark.parametrize("override", CHANGES)
def test_a_changed_setting_redoes_what_depends_on_it(
    override: str, root: Path, encodes: Encodes, caplog: pytest.LogCaptureFixture
) -> None:
    said, clips, captions = CHANGES[override]
    old = prepare(small_config(root), CPU)
    encodes.clear()
    caplog.set_level(logging.INFO)
    new = prepare(small_config(root, override), CPU)
    counted = Counter(encodes)
    assert f"changed since the samples were made: {said}" in caplog.messages
    if clips is None:  # those whose windows are new; the tokenizer stays as it was fitted
        clips = len({one["id"][:16] for one in new.manifest["samples"]} - clip_parts(old))
        assert 0 < clips < len(new.captions)
    else:
        check_as_if_made_at_once(new, root, override)
    assert counted == Counter(clips=clips, captions=captions)


def clip_parts(store: SampleStore) -> set[str]:
    return {name[:16] for name in store.captions}


def check_as_if_made_at_once(store: SampleStore, root: Path, *overrides: str) -> None:
    """Check that a folder holds what the same command makes in an empty one, and no more."""
    there = written(root)
    elsewhere = root / "elsewhere"
    store.layout.folder.rename(root / "kept")
    other = prepare(small_config(root, *overrides), CPU)
    assert other.content_hash == store.content_hash
    other.layout.folder.rename(elsewhere)
    (root / "kept").rename(store.layout.folder)
    kept = {path.removeprefix("samples/"): content for path, (_, content) in there.items()}
    made = {
        path.relative_to(elsewhere).as_posix(): path.read_bytes()
        for path in elsewhere.rglob("*")
        if path.is_file()
    }
    assert {n: c for n, c in kept.items() if not n.startswith(KEPT)} == {
        n: c for n, c in made.items() if not n.startswith(KEPT)
    }


def test_a_changed_caption_redoes_its_embedding_and_no_latent(
    root: Path, encodes: Encodes, caplog: pytest.LogCaptureFixture
) -> None:
    before = prepare(small_config(root), CPU)
    encodes.clear()
    (root / "raw" / "0.txt").write_text("another caption")
    caplog.set_level(logging.INFO)
    after = prepare(small_config(root), CPU)
    assert encodes == Counter(clips=0, captions=1)
    assert "changed since the samples were made: video 0.mp4" in caplog.messages
    said = (
        "samples: 2 to make (2 of them with a latent that is there), 10 there, 2 no longer wanted"
    )
    assert f"{said} (removed at the end)" in caplog.messages
    assert clip_parts(after) == clip_parts(before)
    assert len(set(after.captions) - set(before.captions)) == 2
    assert sorted(set(after.captions.values())) == ["another caption", "lifts", "turns"]
    check_as_if_made_at_once(after, root)


def test_new_changed_and_removed_videos_redo_their_own_clips(
    root: Path, encodes: Encodes, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(root, "data.held_out=0")
    before = prepare(config, CPU)
    encodes.clear()
    raw = root / "raw"
    write_moving_video(raw / "1.mp4", seed=77)
    (raw / "2.mp4").unlink()
    write_moving_video(raw / "6.mp4", seed=6)
    caplog.set_level(logging.INFO)
    after = prepare(config, CPU)
    # the new one has the caption of data.prompt
    assert encodes == Counter(clips=4, captions=1)
    said = "changed since the samples were made: video 1.mp4, video 2.mp4, video 6.mp4"
    assert said in caplog.messages
    assert "samples: 4 to make, 8 there, 4 no longer wanted (removed at the end)" in caplog.messages
    assert "made 4 of 4 samples" in caplog.messages
    assert "removed 4 samples that are no longer wanted" in caplog.messages
    assert len(set(before.captions) & set(after.captions)) == 8
    assert {path.name[:33] for path in (root / "samples").glob("*.info.json")} == set(
        after.captions
    )


def test_a_renamed_video_keeps_the_latents_of_the_windows_it_keeps(
    root: Path, encodes: Encodes
) -> None:
    # as many clips as there are start frames: the same windows whatever the name
    config = small_config(root, "data.chunks_per_video=17", "data.held_out=0")
    prepare(config, CPU)
    encodes.clear()
    for end in ("mp4", "txt"):
        (root / "raw" / f"0.{end}").rename(root / "raw" / f"renamed.{end}")
    after = prepare(config, CPU)
    assert encodes == Counter(clips=0, captions=0)
    assert {one["video"] for one in after.manifest["samples"]} == {
        *(f"{number}.mp4" for number in range(1, 6)),
        "renamed.mp4",
    }


def test_a_latent_that_is_damaged_is_not_taken_over(root: Path, encodes: Encodes) -> None:
    store = prepare(small_config(root), CPU)
    encodes.clear()
    damaged = next(name for name, caption in store.captions.items() if caption == "lifts")
    path = root / "samples" / f"{damaged}.video_latent.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    for number in (0, 2, 4):
        (root / "raw" / f"{number}.txt").write_text("another caption")
    after = prepare(small_config(root), CPU)
    assert encodes == Counter(clips=1, captions=1)
    for name in after.captions:
        after.load(name)


def test_samples_that_are_gone_are_made_again(root: Path, encodes: Encodes) -> None:
    store = prepare(small_config(root), CPU)
    whole = {name: content for name, (_, content) in written(root).items()}
    encodes.clear()
    one, two, *_ = store.captions
    store.layout.info(one).unlink()
    (root / "samples" / f"{two}.video_latent.safetensors").unlink()
    prepare(small_config(root), CPU)
    assert encodes == Counter(clips=2, captions=0)
    shutil.rmtree(root / "samples/text")
    prepare(small_config(root), CPU)
    (root / "samples" / store.manifest["fitted_tokenizer"]).unlink()
    prepare(small_config(root), CPU)
    assert {name: content for name, (_, content) in written(root).items()} == whole


def test_what_the_manifest_says_holds_until_the_new_one_is_there(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare(small_config(root), CPU)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "complete", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(small_config(root, "data.fit=pad"), CPU)
    between = open_store(str(root / "samples"))
    assert between.content_hash == before.content_hash
    for name in between.captions:
        between.load(name)
    # the change is taken back: what was made of it goes
    prepare(small_config(root), CPU)
    assert {path.name[:33] for path in (root / "samples").glob("*.info.json")} == set(
        before.captions
    )


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_removal_is_made_up_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(small_config(root), CPU)
    config = small_config(root, "data.fit=pad")
    with monkeypatch.context() as patch:
        patch.setattr("cosmos_hydra.data.manifest.remove_unwanted", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, CPU)
    assert len(list((root / "samples").glob("*.info.json"))) == 24
    store = prepare(config, CPU)
    check_as_if_made_at_once(store, root, "data.fit=pad")


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


def test_a_kill_while_the_plan_was_written_leaves_a_folder_of_ours(root: Path) -> None:
    (root / "samples").mkdir()
    (root / "samples" / ".plan.123.tmp.json").write_text("{")
    (root / "samples" / "hashes.json").write_text("{}")
    assert len(prepare(small_config(root), CPU).captions) == 12


def test_a_folder_with_other_files_is_left_alone(root: Path) -> None:
    (root / "samples").mkdir()
    (root / "samples" / "thesis.tex").write_text("years of work")
    with pytest.raises(StageError) as caught:
        prepare(small_config(root), CPU)
    assert str(caught.value) == (
        f"data.path={root / 'samples'} is not empty and not ours; choose another data.path"
    )
    assert list(written(root)) == ["samples/thesis.tex"]
