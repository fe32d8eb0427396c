"""`cosmos-hydra stage=inspect`: figures of a source, what settings keep, and look-alikes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, Command
from raw_videos import write_moving_video

from cosmos_hydra.data import lookalikes
from cosmos_hydra.data.lookalikes import fingerprint
from cosmos_hydra.data.sources.arm import render
from cosmos_hydra.data.video import write_mp4

INSPECT = ("stage=inspect", "data=folder", *SMALL, "data.source=raw", "data.prompt=a robot moves")
FPS = 12.0


def arm(seed: int, motion: str = "lift") -> np.ndarray:
    """Return 33 pictures of an arm before a wall, always the same but for phase and speed."""
    generator = np.random.default_rng(seed)
    return render(
        motion, "front", num_frames=33, fps=FPS, height=96, width=128, generator=generator
    )


def write_arms(folder: Path, count: int) -> None:
    folder.mkdir()
    for seed in range(count):
        write_mp4(folder / f"{seed}.mp4", arm(seed, ("lift", "reach")[seed % 2]), FPS)


def test_the_screen_shows_sizes_rates_lengths_and_captions(
    command: Command, tmp_path: Path
) -> None:
    for number, frames in enumerate((8, 17, 17, 40)):
        write_moving_video(tmp_path / f"raw/{number}.mp4", number, frames, fps=12 + number // 3)
    (tmp_path / "raw/3.txt").write_text("an arm lifts a cube")
    (tmp_path / "raw/bad.mp4").write_bytes(b"")
    screen = command(*INSPECT, cwd=tmp_path)
    lines = screen.stdout.splitlines()
    assert (screen.code, screen.stderr) == (0, "")
    assert "found 5 videos = kept 4 + skipped 0 + failed 1 (1 x empty file)" in lines
    assert "failed: empty file: bad.mp4" in lines
    assert "4 videos of 4 episodes" in lines
    assert "size: 64x48 (4)" in lines
    assert "fps: 12 (3), 13 (1)" in lines
    expected = "length: 8 to 40 frames, half of them up to 17; 0.7 to 3.1 s, 0.1 min in all"
    assert expected in lines
    assert "captions: 2 different, 3 to 5 words; 0 videos without" in lines
    assert "  3 x a robot moves" in lines
    bars = [line for line in lines if " frames  #" in line]
    assert sum(int(line.split()[-1]) for line in bars) == 4
    lines = command(*INSPECT[:-1], cwd=tmp_path).stdout.splitlines()
    assert "captions: 1 different, 5 to 5 words; 4 videos without" in lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_the_screen_shows_what_each_length_keeps(command: Command, tmp_path: Path) -> None:
    for number, frames in enumerate((8, 17, 17, 40, 40, 40)):
        write_moving_video(tmp_path / f"raw/{number}.mp4", number, frames)
    rows = {}
    for line in command(*INSPECT, "data.max_overlap=1", cwd=tmp_path).stdout.splitlines():
        cells = line.split()
        if cells and all(cell.isdigit() for cell in cells[:5]) and len(cells) >= 5:
            rows[int(cells[0])] = [int(cell) for cell in cells[1:5]]
    # of six videos and of five one is held out, three are too short for an end of their own
    assert rows[1] == [6, 12, 10, 2]
    assert rows[9] == [5, 10, 8, 2]
    assert rows[33] == [3, 6, 6, 0]
    assert 49 not in rows
    for _, clips, train, held_out in rows.values():
        assert clips == train + held_out


@pytest.mark.parametrize(("fit", "word"), [("crop", "cut off"), ("pad", "are borders")])
def test_the_screen_shows_what_a_fit_costs(
    command: Command, tmp_path: Path, fit: str, word: str
) -> None:
    write_moving_video(tmp_path / "raw/a.mp4", 0)
    typed = ("data.height=48", "data.width=96", f"data.fit={fit}")
    lines = command(*INSPECT, *typed, cwd=tmp_path).stdout.splitlines()
    (row,) = [line for line in lines if line.startswith(f"  {fit} ")]
    # 64x48 in 96x48: a third is lost or border
    assert "33.3%" in row
    assert word in row
    assert row.endswith("(at most 33.3%, a.mp4)  <- data.fit")
    assert "  1 videos are smaller than the clip and are enlarged" in lines


def test_copies_are_found_however_encoded_and_other_episodes_of_a_scene_are_not(
    command: Command, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    write_arms(raw, 8)
    screen = command(*INSPECT, cwd=tmp_path).stdout
    assert "look-alikes: none" in screen.splitlines()
    write_mp4(raw / "again.mp4", arm(2), FPS, crf=36)
    pictures_FCHW = torch.from_numpy(arm(3, "reach")).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(pictures_FCHW, scale_factor=0.5, mode="area")
    dark = (small * 0.8).byte().permute(0, 2, 3, 1).numpy()
    write_mp4(raw / "dark.mp4", np.ascontiguousarray(dark), FPS)
    shutil.copy(raw / "5.mp4", raw / "copy.mp4")
    lines = command(*INSPECT, cwd=tmp_path).stdout.splitlines()
    pairs = {tuple(line.split(",")[0].split()[::2]) for line in lines if " = " in line}
    assert {("2.mp4", "again.mp4"), ("3.mp4", "dark.mp4"), ("5.mp4", "copy.mp4")} == {
        pair for pair in pairs if pair[0] != "found"
    }
    at = lines.index("look-alikes of the same bytes, of which the first is taken: 1 pairs")
    assert lines[at + 1] == "  5.mp4 = copy.mp4, distance 0.000"


def test_it_says_when_not_all_videos_are_compared(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookalikes, "MAX_VIDEOS", 3)
    write_arms(tmp_path / "raw", 4)
    lines = command(*INSPECT, cwd=tmp_path).stdout.splitlines()
    assert "look-alikes: of 4 videos 3, evenly spread, are compared" in lines
    assert any(line.startswith("compare 3/3 videos") for line in lines)


def test_a_copy_in_the_other_split_is_a_leak(command: Command, tmp_path: Path) -> None:
    write_arms(tmp_path / "raw", 6)
    for seed in range(6):
        again = arm(seed, ("lift", "reach")[seed % 2])
        write_mp4(tmp_path / f"raw/{seed}_again.mp4", again, FPS, crf=30)
    screen = command(*INSPECT, cwd=tmp_path).stdout
    # one of twelve is held out, its copy is not
    assert "look-alikes trained on and held out at once: 1 pairs" in screen
    assert "look-alikes in one split: 5 pairs" in screen
    assert "remove one of each pair, or the validation loss is of what was trained on" in screen


def test_a_fingerprint_has_neither_brightness_nor_contrast() -> None:
    picture = torch.from_numpy(arm(0)[:1])
    lighter = (picture.float() * 0.5 + 60).round().byte()
    assert torch.allclose(fingerprint(picture), fingerprint(lighter), atol=0.02)
    blank = torch.full((1, 96, 128, 3), 7, dtype=torch.uint8)
    assert torch.equal(fingerprint(blank), torch.zeros(1, 256))


def test_a_source_without_a_readable_video_is_an_error(command: Command, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/bad.mp4").write_bytes(b"")
    screen = command(*INSPECT, cwd=tmp_path)
    assert screen.code == 1
    assert screen.stderr == "cosmos-hydra: data.source=raw holds no video that can be read\n"


def test_a_source_is_needed(command: Command, tmp_path: Path) -> None:
    screen = command("stage=inspect", "data=folder", cwd=tmp_path)
    assert screen.code == 2
    assert "data.source=null; set it to the folder of your videos" in screen.stderr
