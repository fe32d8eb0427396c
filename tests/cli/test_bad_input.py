"""Data that cannot be used: one line and exit code 1, or a run that goes on and counts."""

import json
import shutil
from pathlib import Path

from conftest import SMALL, Command, Outcome

PROMPT = "data.prompt=A robot arm moves."


def preprocess(command: Command, folder: Path, *typed: str) -> Outcome:
    return command(
        *("stage=preprocess", "data=folder", *SMALL, "data.source=videos", PROMPT, *typed),
        cwd=folder,
    )


def rendered(small_samples: Path) -> list[Path]:
    """Return the six rendered videos, 17 frames each."""
    return sorted((small_samples / "samples/synthetic-videos").glob("*.mp4"))


def test_a_missing_source_folder_is_named(command: Command, tmp_path: Path) -> None:
    refused = preprocess(command, tmp_path)
    assert (refused.code, refused.stderr) == (
        1,
        "cosmos-hydra: data.source=videos is no folder; set it to your videos\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_videos_says_what_was_looked_for(command: Command, tmp_path: Path) -> None:
    (tmp_path / "videos/deep").mkdir(parents=True)
    (tmp_path / "videos/deep/notes.txt").write_text("no video")
    refused = preprocess(command, tmp_path)
    assert (refused.code, refused.stderr) == (
        1,
        (
            "cosmos-hydra: data.source=videos holds no videos; "
            "looked for .avi .m4v .mkv .mov .mp4 .webm\n"
        ),
    )


def test_videos_shorter_than_the_clip_are_counted_and_named(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    for video in rendered(small_samples):
        shutil.copy(video, tmp_path / "videos")
    refused = preprocess(command, tmp_path, "data.frames=25")
    assert (refused.code, refused.stderr) == (
        1,
        (
            "cosmos-hydra: data.source=videos gives no sample: found 6 videos = kept 0 + "
            "skipped 6 (6 x shorter than the clip of data.frames=25) + failed 0; "
            "see the reasons, or lower data.frames\n"
        ),
    )
    assert not (tmp_path / "samples").exists()


def test_unreadable_videos_among_good_ones_are_counted_and_the_rest_is_done(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    good = rendered(small_samples)[:2]
    for video in good:
        shutil.copy(video, videos)
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("this is no video " * 100)
    whole = good[0].read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    done = preprocess(command, tmp_path)
    assert (done.code, done.stderr) == (0, "")
    found = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    assert len(found) == 1
    assert found[0].startswith("found 5 videos = kept 2 + skipped 0 + failed 3 (")
    assert "1 x empty file" in found[0]
    assert "x cannot be decoded (" in found[0]

    [path] = (tmp_path / "samples").glob("*/manifest.json")
    manifest = json.loads(path.read_text())
    assert set(manifest["failed"]) == {"cut.mp4", "empty.mp4", "text.mp4"}
    assert all(manifest["failed"].values())
    assert set(manifest["videos"]) == {video.name for video in good}
    counts = manifest["counts"]
    assert counts["found"] == counts["kept"] + sum(counts["failed"].values()) == 5
    assert {sample["video"] for sample in manifest["samples"]} == {video.name for video in good}


def test_only_unreadable_videos_are_an_error_that_lists_the_reasons(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/empty.mp4").touch()
    refused = preprocess(command, tmp_path)
    assert (refused.code, refused.stderr) == (
        1,
        (
            "cosmos-hydra: data.source=videos gives no sample: found 1 videos = kept 0 + "
            "skipped 0 + failed 1 (1 x empty file); see the reasons, or lower data.frames\n"
        ),
    )


def test_training_without_samples_says_how_to_make_them(command: Command, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for path in ("nothing", "absent"):
        refused = command("stage=post_train", f"data.path={path}", cwd=tmp_path)
        assert (refused.code, refused.stderr) == (
            1,
            (
                f"cosmos-hydra: data.path={path} holds no samples (no manifest.json); run: "
                f"cosmos-hydra stage=preprocess data.path={path} "
                "with the same data= and data.source=\n"
            ),
        )
    assert list((tmp_path / "nothing").iterdir()) == []


def test_samples_are_never_written_into_a_folder_of_something_else(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    shutil.copy(rendered(small_samples)[0], tmp_path / "videos")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("do not lose")
    refused = preprocess(command, tmp_path, "data.path=thesis")
    assert (refused.code, refused.stderr) == (
        1,
        "cosmos-hydra: data.path=thesis is not empty and not ours; choose another data.path\n",
    )
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
