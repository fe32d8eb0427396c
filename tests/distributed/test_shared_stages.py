"""preprocess and generate on two ranks: each makes a part, the whole is that of one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import sharing_cases
from ranks import folder_of, run
from raw_videos import write_damaged_video, write_moving_video
from small_runs import generate, small_config, train

RAW = ("data.chunks_per_video=2", "data.held_out=0")


def notes_of(folder: Path, ranks: int = 2) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(ranks)]


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        # hashes are remembered once the videos are two seconds old
        if path.is_file() and path.name not in (".lock", "hashes.json")
    }


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for number in range(4):
        write_moving_video(tmp_path / "raw" / f"{number}.mp4", seed=number)
        (tmp_path / "raw" / f"{number}.txt").write_text(f"caption {number % 2}")
    write_damaged_video(tmp_path / "raw" / "damaged.mp4", 60, 20, 60)
    return tmp_path


def test_ranks_share_the_clips_and_make_what_one_process_makes(raw: Path) -> None:
    for ranks, name in ((1, "one"), (2, "two")):
        typed = (*RAW, f"data.path={raw / name}")
        run(ranks, sharing_cases.preprocess, raw, typed, folder_of(raw, f"out_{name}"))
    one, two = (json.loads((raw / name / "manifest.json").read_text()) for name in ("one", "two"))
    assert one["content_hash"] == two["content_hash"]
    assert one["counts"] == two["counts"]
    assert one["counts"]["failed"] == {"cannot be decoded (damaged frames)": 1}
    made = [bytes_below(raw / name) for name in ("one", "two")]
    for files in made:
        del files["manifest.json"]  # which has data.path
    assert made[0] == made[1]
    (alone,) = notes_of(raw / "out_one", 1)
    assert sum(notes["encoded"] for notes in notes_of(raw / "out_two")) == alone["encoded"] >= 8


def test_samples_that_are_there_are_not_made_again_by_any_rank(raw: Path) -> None:
    out = folder_of(raw, "out")
    run(2, sharing_cases.preprocess, raw, RAW, out)
    run(2, sharing_cases.preprocess, raw, RAW, out)
    first, second = notes_of(out)
    assert (first["encoded"], second["encoded"]) == (0, 0)
    assert f"samples in {raw / 'samples'} are up to date" in first["said"]
    assert not any("up to date" in line for line in second["said"])


def test_every_rank_ends_with_the_refusal_of_the_first(raw: Path) -> None:
    (raw / "samples").mkdir()
    (raw / "samples" / "holiday.txt").write_text("not ours")
    out = folder_of(raw, "out")
    run(2, sharing_cases.preprocess, raw, RAW, out)
    for notes in notes_of(out):
        assert notes["raised"] == (
            f"data.path={raw / 'samples'} is not empty and not ours; choose another data.path"
        )


def test_an_error_of_rank_0_reaches_all_and_is_known_to_be_everywhere(tmp_path: Path) -> None:
    run(2, sharing_cases.refuse, tmp_path)
    first, second = notes_of(tmp_path)
    assert first == {"acted": [1], "error": "the disk is full", "is_everywhere": True}
    assert second == {"acted": [], "error": "the disk is full", "is_everywhere": True}


def test_ranks_share_the_prompts_and_make_the_videos_of_one_process(
    small_samples: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "run"
    train(small_config(small_samples, "trainer.max_steps=2"), trained)
    typed = ("generate.prompt=a robot", "generate.videos_per_prompt=3", "generate.steps=2")
    alone = generate(trained, folder_of(tmp_path, "alone"), *typed)
    out = folder_of(tmp_path, "two")
    run(2, sharing_cases.generate, trained, typed, out)
    for path in alone:
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert (out / "contact_sheet.png").read_bytes() == (
        tmp_path / "alone" / "contact_sheet.png"
    ).read_bytes()
    first, second = (notes["decoded"] for notes in notes_of(out))
    assert first == 2 * second > 0
