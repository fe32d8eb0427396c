"""LeRobot data sets that are damaged, mislabelled or hostile: one clear reason each."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from lerobot_sets import (
    CAMERAS,
    TASKS,
    V2_PATHS,
    rows_of,
    write_info,
    write_lerobot,
    write_table,
)
from raw_videos import inventory_of, small_config, write_video

from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.inventory import Inventory
from cosmos_hydra.data.sources import find
from cosmos_hydra.data.sources.lerobot_meta import fill
from cosmos_hydra.errors import StageError

LENGTHS = (20, 12, 14)
TOP = CAMERAS[0]
BAD = f"{TOP}/episode_000001"


def data_of(root: Path, *overrides: str) -> DataConfig:
    return small_config(root, f"data.source={root}", *overrides, data="lerobot").data


def look(root: Path, *overrides: str) -> Inventory:
    typed = (f"data.source={root}", "data.prompt=null", *overrides)
    return inventory_of(small_config(root, *typed, data="lerobot"))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def edit_episodes(root: Path, **changed: Any) -> None:
    """Change the line of episode 1."""
    path = root / "meta/episodes.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1] |= changed
    path.write_text("\n".join(map(json.dumps, lines)))


def edit_rows(root: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the rows of episode 1."""
    rows = rows_of(1, LENGTHS[1])
    change(rows)
    write_table(root / "data/chunk-000/episode_000001.parquet", rows)


def shorten_video(root: Path) -> None:
    path = root / f"videos/chunk-000/{TOP}/episode_000001.mp4"
    write_video(path, np.zeros((7, 64, 160, 3), np.uint8), fps=10)


def slow_video(root: Path) -> None:
    path = root / f"videos/chunk-000/{TOP}/episode_000001.mp4"
    write_video(path, np.zeros((12, 64, 160, 3), np.uint8), fps=7)


def not_a_number(rows: list[dict[str, Any]]) -> None:
    rows[3]["action"][1] = float("nan")


def one_dimension_less(rows: list[dict[str, Any]]) -> None:
    rows[3]["observation.state"] = [0.0]


def no_ascending_time(rows: list[dict[str, Any]]) -> None:
    rows[3]["timestamp"] = np.float32(0.0)


def without_state(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        del row["observation.state"]


TABLE = "data/chunk-000/episode_000001.parquet"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no table": (lambda root: (root / TABLE).unlink(), f"{TABLE} is missing"),
    "cut table": (
        lambda root: (root / TABLE).write_bytes((root / TABLE).read_bytes()[:99]),
        f"{TABLE} cannot be read (",
    ),
    "no video": (
        lambda root: (root / f"videos/chunk-000/{TOP}/episode_000001.mp4").unlink(),
        f"videos/chunk-000/{TOP}/episode_000001.mp4 is missing",
    ),
    "short video": (shorten_video, "video ends at 0.60 s, its episode at 1.10 s"),
    "wrong fps": (
        slow_video,
        "row 1 is at 0.100 s, the nearest frame at 0.143 s: the fps of data or video is wrong",
    ),
    "not a number": (lambda root: edit_rows(root, not_a_number), "action is not finite in row 3"),
    "ragged": (
        lambda root: edit_rows(root, one_dimension_less),
        "observation.state has rows without numbers or of different lengths",
    ),
    "time": (lambda root: edit_rows(root, no_ascending_time), "its time stamps do not ascend"),
    "no state": (
        lambda root: edit_rows(root, without_state),
        f"{TABLE} lacks the column observation.state",
    ),
    "length": (
        lambda root: edit_episodes(root, length=9),
        "its table has 12 rows, its length is 9",
    ),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_lerobot(tmp_path / "set", "2.1", lengths=LENGTHS)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_an_episode_costs_that_and_gives_one_reason(root: Path, name: str) -> None:
    damage, reason = DAMAGES[name]
    damage(root)
    inventory = look(root, "data.cameras=[top]")
    assert inventory.failed.keys() == {BAD}
    assert inventory.failed[BAD].startswith(reason)
    assert len(inventory.episodes) == 2


def test_an_empty_task_is_no_caption(root: Path) -> None:
    edit_episodes(root, tasks=[""])
    (root / "meta/tasks.jsonl").unlink()
    inventory = look(root, "data.cameras=[top]")
    assert inventory.skipped == {BAD: "no caption: its task is empty, no data.prompt"}
    assert (
        inventory_of(small_config(root, f"data.source={root}", data="lerobot"))
        .episodes[BAD]
        .caption
        == "a robot moves"
    )


def test_a_task_that_the_episode_does_not_name_is_that_of_its_rows(root: Path) -> None:
    edit_episodes(root, tasks=[])
    assert look(root).episodes[BAD].task == TASKS[1]


def test_a_depth_camera_is_skipped_and_said_so(root: Path) -> None:
    def as_depth(info: Any) -> Any:
        info["features"][TOP]["info"]["video.is_depth_map"] = True
        return info

    edit(root / "meta/info.json", as_depth)
    assert set(look(root).counts()["skipped"].items()) == {("depth map", 3)}


def test_fewer_episodes_than_announced_is_a_warning(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_info(root, "2.1", LENGTHS, total_episodes=5)
    find(data_of(root))
    assert "announces 5 episodes, meta/episodes describes 3" in caplog.text


def test_files_of_version_2_labelled_3_are_read_as_they_are(root: Path) -> None:
    write_info(root, "3.0", LENGTHS, **V2_PATHS)
    assert look(root).counts()["kept"] == 6
    write_info(root, "3.0", LENGTHS, data_path=None, video_path=None)
    assert look(root).counts()["kept"] == 6


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no info": (lambda root: (root / "meta/info.json").unlink(), "No such file"),
    "no JSON": (lambda root: (root / "meta/info.json").write_text("{"), "Expecting property"),
    "no features": (
        lambda root: write_info(root, "2.1", features=[1]),
        "meta/info.json: features is no table",
    ),
    "no episodes": (
        lambda root: (root / "meta/episodes.jsonl").unlink(),
        "neither meta/episodes.jsonl nor a table below meta/episodes",
    ),
    "no length": (lambda root: edit_episodes(root, length="12"), "is no number (1, '12')"),
    "twice": (lambda root: edit_episodes(root, episode_index=0), "an episode is described twice"),
    "chunks": (lambda root: write_info(root, "2.1", chunks_size=-1), "chunks_size is -1"),
    "no line": (
        lambda root: (root / "meta/episodes.jsonl").write_text("3"),
        "meta/episodes: a line is no table",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damage_to_the_whole_is_one_line(root: Path, name: str) -> None:
    damage, reason = BROKEN[name]
    damage(root)
    expected = r"is no LeRobot data set of version 2.0, 2.1 or 3.0, or a damaged one \(.*"
    with pytest.raises(StageError, match=expected + re.escape(reason)) as caught:
        find(data_of(root))
    assert "\n" not in str(caught.value)


def test_a_data_set_without_videos_is_refused(root: Path) -> None:
    write_info(root, "2.1", features={"observation.images.top": {"dtype": "image"}})
    with pytest.raises(StageError, match="holds no videos: features of dtype video are needed"):
        find(data_of(root))


def test_a_part_that_ends_before_it_begins_is_a_reason(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "set", "3.0", lengths=LENGTHS)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = parquet.read_table(path).to_pylist()
    rows[1][f"videos/{TOP}/to_timestamp"] = 0.5
    rows[2][f"videos/{TOP}/from_timestamp"] = 100.0
    rows[2][f"videos/{TOP}/to_timestamp"] = 102.0
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    assert look(root, "data.cameras=[top]").failed == {
        BAD: "its part of the file is from 2 s to 0.5 s",
        f"{TOP}/episode_000002": "no frame from 100 s to 102 s, its episode's part",
    }


HOSTILE = (
    "{episode_index.__class__}",
    "{episode_index!r}",
    "{secret}",
    "{video_key[0]}",
    "{0}",
    "{}",
    "{{episode_index}}",
    "/etc/passwd",
    "../outside/{video_key}.mp4",
    "videos/../../{video_key}.mp4",
    "videos/{video_key:099999999d}.mp4",
    "videos\\{video_key}.mp4",
    "videos/\x00.mp4",
    "",
)


@pytest.mark.parametrize("template", HOSTILE)
def test_a_path_of_other_places_or_outside_is_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(ValueError, match=r"path|name|format"):
        fill(tmp_path, template, {"episode_index": 1, "video_key": "top"})


@pytest.mark.parametrize("key", ["../../top", "/top", "a/../../b", "{episode_index}", "a\nb"])
def test_a_camera_whose_name_leads_elsewhere_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=r"name|places"):
        fill(tmp_path, "{video_key}", {"video_key": key})


def test_a_link_out_of_the_data_set_is_refused(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.mp4"
    video = root / f"videos/chunk-000/{TOP}/episode_000001.mp4"
    video.rename(outside)
    video.symlink_to(outside)
    assert "leads out of the folder" in look(root).failed[BAD]


def test_paths_are_filled_as_lerobot_does(tmp_path: Path) -> None:
    values: dict[str, str | int] = {
        "episode_index": 1234,
        "episode_chunk": 1,
        "video_key": "top",
        "chunk_index": 2,
        "file_index": 7,
    }
    for template in (
        *V2_PATHS.values(),
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "a/{episode_chunk}/{episode_index:d}",
    ):
        assert fill(tmp_path, template, values) == tmp_path / template.format(**values)
