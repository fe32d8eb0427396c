"""From raw videos to samples: what is kept, what is left out, what is encoded and how often."""

import gc
import json
import logging
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Command
from raw_videos import numbered_frames, small_config, write_damaged_video, write_moving_video

from cosmos_hydra.data import prepare as prepare_module
from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.data.video import write_mp4
from cosmos_hydra.errors import StageError
from cosmos_hydra.models.text import HashTextEncoder

CPU = torch.device("cpu")


def write_videos(root: Path, count: int) -> Path:
    for number in range(count):
        write_moving_video(root / "raw" / f"{number}.mp4", seed=number)
    return root / "raw"


def write_mixed_folder(root: Path) -> None:
    """Four good videos, two too short, one without a caption, three broken, one that is gone."""
    raw = write_videos(root, 4)
    for name in ("short1", "short2"):
        write_moving_video(raw / f"{name}.mp4", seed=9, frames=8)
    for number in range(4):
        (raw / f"{number}.txt").write_text(f"caption {number % 2}")
    for name in ("short1", "short2", "empty", "text", "broken_caption"):
        (raw / f"{name}.txt").write_text("caption 0")
    (raw / "empty.mp4").write_bytes(b"")
    (raw / "text.avi").write_text("hello")
    write_moving_video(raw / "no_caption.mp4", seed=5)
    write_moving_video(raw / "broken_caption.mp4", seed=5)
    (raw / "broken_caption.txt").unlink()
    (raw / "broken_caption.json").write_text("{")
    (root / "table.csv").write_text("video,caption\ngone.mp4,caption 0\n")


def test_found_is_kept_skipped_and_failed_printed_and_stored(
    tmp_path: Path, command: Command
) -> None:
    write_mixed_folder(tmp_path)
    small = [item for item in SMALL if not item.startswith("data.synthetic")]
    where = ["data.source=raw", "data.path=samples", "data.captions=table.csv"]
    outcome = command("stage=preprocess", "data=folder", *small, *where, cwd=tmp_path)
    assert outcome.code == 0
    line = next(line for line in outcome.stdout.splitlines() if line.startswith("found "))
    assert line.startswith(
        "found 11 videos = kept 4 + skipped 3 ("
        "1 x no caption: no .txt or .json beside it, no data.prompt; "
        "2 x shorter than the clip of data.frames=9) + failed 4 ("
    )
    assert "1 x listed in table.csv but not below data.source" in line
    assert "1 x empty file" in line
    assert "1 x cannot be decoded (no video file, or cut off)" in line
    assert "1 x caption file cannot be read (" in line
    manifest = json.loads((tmp_path / "samples/manifest.json").read_text())
    counts = manifest["counts"]
    assert (counts["found"], counts["kept"]) == (11, 4)
    assert sum(counts["skipped"].values()) == 3
    assert sum(counts["failed"].values()) == 4
    assert set(manifest["videos"]) == {"0.mp4", "1.mp4", "2.mp4", "3.mp4"}
    assert set(manifest["skipped"]) == {"no_caption.mp4", "short1.mp4", "short2.mp4"}
    assert set(manifest["failed"]) == {"broken_caption.mp4", "empty.mp4", "gone.mp4", "text.avi"}
    # the last clip of each of few videos is held out
    assert Counter(sample["split"] for sample in manifest["samples"]) == {"train": 0, "held_out": 0}


def test_no_video_that_can_be_used_is_an_error_with_the_reasons(
    tmp_path: Path, command: Command
) -> None:
    raw = tmp_path / "raw"
    write_moving_video(raw / "short.mp4", seed=0, frames=8)
    (raw / "text.mp4").write_text("hello")
    outcome = command(
        "stage=preprocess", "data=folder", *SMALL, "data.source=raw", "data.prompt=x", cwd=tmp_path
    )
    assert outcome.code == 1
    assert outcome.stderr == (
        "cosmos-hydra: data.source=raw gives no sample: found 2 videos = kept 0 + skipped 1 "
        "(1 x shorter than the clip of data.frames=9) + failed 1 "
        "(1 x cannot be decoded (no video file, or cut off)); see the reasons, or lower "
        "data.frames\n"
    )


def test_a_file_that_breaks_while_decoding_drops_only_its_own_clips(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = write_videos(tmp_path, 5)
    write_damaged_video(raw / "damaged.mp4", 60, 20, 60)
    caplog.set_level(logging.INFO)
    store = prepare(small_config(tmp_path, "data.chunks_per_video=3"), CPU)
    manifest = store.manifest
    assert manifest["counts"] == {
        "found": 6,
        "kept": 5,
        "skipped": {},
        "failed": {"cannot be decoded (damaged frames)": 1},
    }
    assert Counter(sample["video"] for sample in manifest["samples"]) == {
        f"{number}.mp4": 3 for number in range(5)
    }
    ids = {sample["id"] for sample in manifest["samples"]}
    on_disk = {path.name.split(".")[0] for path in (tmp_path / "samples").glob("[0-9]*")}
    assert on_disk == ids
    for sample_id in ids:
        store.load(sample_id)
    assert "damaged.mp4: cannot be decoded (damaged frames); its clips are left out" in caplog.text
    # the counts are said again, now true
    assert caplog.messages[-1] == (
        "found 6 videos = kept 5 + skipped 0 + failed 1 (1 x cannot be decoded (damaged frames))"
    )


def test_when_every_file_breaks_while_decoding_there_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    write_damaged_video(tmp_path / "raw" / "damaged.mp4", 60, 1, 60)
    with pytest.raises(StageError) as caught:
        prepare(small_config(tmp_path), CPU)
    assert str(caught.value) == (
        f"data.source={tmp_path / 'raw'} has no training clip that can be decoded; "
        f"replace the damaged videos"
    )


def test_every_distinct_caption_is_encoded_once_and_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_videos(tmp_path, 6)
    for number in range(6):
        (raw / f"{number}.txt").write_text(["lifts", "turns", "waves"][number % 3])
    encoded = []
    encode = HashTextEncoder.encode

    def counted(self: HashTextEncoder, caption: str) -> object:
        encoded.append(caption)
        return encode(self, caption)

    monkeypatch.setattr(HashTextEncoder, "encode", counted)
    store = prepare(small_config(tmp_path), CPU)
    assert sorted(encoded) == ["lifts", "turns", "waves"]
    assert len(list((tmp_path / "samples/text").iterdir())) == 3
    for sample_id, caption in store.captions.items():
        expected = encode(HashTextEncoder(16, 1024), caption).embedding_TD
        assert torch.equal(store.load(sample_id).text_TD, expected)


def test_the_encoders_are_gone_when_preparing_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_videos(tmp_path, 2)
    made: list[weakref.ref] = []
    for name in ("load_text_encoder", "load_tokenizer"):
        load = getattr(prepare_module, name)

        def watched(*arguments: object, load: object = load) -> object:
            encoder = load(*arguments)
            made.append(weakref.ref(encoder))
            return encoder

        monkeypatch.setattr(prepare_module, name, watched)
    gc.disable()  # gone without waiting for the collector
    try:
        store = prepare(small_config(tmp_path), CPU)
    finally:
        gc.enable()
    assert len(store.splits["train"]) == 4
    assert [reference() for reference in made] == [None, None]


def test_a_caption_longer_than_the_token_budget_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = write_videos(tmp_path, 2)
    (raw / "0.txt").write_text(" ".join(f"word{number}" for number in range(17)))
    (raw / "1.txt").write_text(" ".join(f"word{number}" for number in range(15)))
    caplog.set_level(logging.WARNING)
    prepare(small_config(tmp_path), CPU)
    assert [record.getMessage() for record in caplog.records] == [
        "caption fills all 16 tokens and may be cut: "
        "word0 word1 word2 word3 word4 word5 word6 word7 word8 word9 ..."
    ]


@pytest.mark.parametrize(
    ("size", "padding"),
    [
        ((48, 64), {"top": 0, "bottom": 6, "left": 0, "right": 8}),
        # 48x32 of 48x64 pixels is picture: columns 16 to 47, cells 2 to 5
        ((96, 64), {"top": 0, "bottom": 6, "left": 2, "right": 6}),
        # 24 of 48 rows: 12 to 35, cells 1 to 4 in part or whole
        ((32, 86), {"top": 1, "bottom": 5, "left": 0, "right": 8}),
    ],
)
def test_the_padding_mask_follows_the_picture(
    size: tuple[int, int], padding: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    frames = numbered_frames(9)[:, :1, :1].repeat(size[0], axis=1).repeat(size[1], axis=2)
    write_mp4(tmp_path / "raw" / "a.mp4", frames, 12.0)
    store = prepare(small_config(tmp_path, "data.fit=pad"), CPU)
    expected = torch.ones(1, 6, 8)
    expected[:, padding["top"] : padding["bottom"], padding["left"] : padding["right"]] = 0
    assert torch.equal(store.load("0").padding_1HW, expected)
    store = prepare(small_config(tmp_path, f"data.path={tmp_path / 'cropped'}"), CPU)
    assert not store.load("0").padding_1HW.any()
