"""From raw videos to samples: what is kept, what is left out and why."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Command
from raw_videos import small_config, write_damaged_video, write_moving_video

from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.errors import StageError

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
    assert Counter(sample["video"] for sample in manifest["samples"]) == {
        f"{number}.mp4": 2 for number in range(4)
    }


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
    on_disk = {path.name.split(".")[0] for path in (tmp_path / "samples").glob("*.info.json")}
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
    write_damaged_video(tmp_path / "raw" / "damaged.mp4", 60, 20, 60)
    with pytest.raises(StageError) as caught:
        prepare(small_config(tmp_path, "data.frames=25"), CPU)
    assert str(caught.value) == (
        f"data.source={tmp_path / 'raw'} has no training clip that can be decoded; "
        f"replace the damaged videos"
    )
