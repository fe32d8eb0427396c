"""LeRobot data sets of every version: which frames, captions, actions and states come out."""

from pathlib import Path

import numpy as np
import pytest
from lerobot_sets import (
    CAMERAS,
    FPS,
    JOINTS,
    LENGTHS,
    TASKS,
    action_of,
    state_of,
    who,
    write_lerobot,
)
from raw_videos import inventory_of, small_config

from cosmos_hydra.config import Config
from cosmos_hydra.data.sources import find
from cosmos_hydra.data.video import decode
from cosmos_hydra.errors import ConfigError

VERSIONS = ("2.0", "2.1", "3.0")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("lerobot")
    return {version: write_lerobot(root / version, version) for version in VERSIONS}


def config_of(root: Path, *overrides: str) -> Config:
    typed = (f"data.source={root}", "data.frames=9", "data.prompt=null", *overrides)
    return small_config(root, *typed, data="lerobot")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_frame_action_and_state_of_an_episode_is_its_own(
    sets: dict[str, Path], version: str
) -> None:
    inventory = inventory_of(
        config_of(sets[version], "data.chunks_per_video=100", "data.max_overlap=1")
    )
    assert inventory.counts()["kept"] == len(LENGTHS) * len(CAMERAS)
    assert len(inventory.clips) == 2 * sum(length - 8 for length in LENGTHS)
    seen = set()
    for clip in inventory.clips[:: 7 if version != "3.0" else 3]:
        episode = inventory.episodes[clip.video]
        camera, name = clip.video.split("/")
        index = int(name.removeprefix("episode_"))
        shown = [who(picture) for picture in decode(episode.video, list(clip.frame_indices))]
        frames = [frame for _, _, frame in shown]
        assert {(camera, index)} == {pair[:2] for pair in shown}
        assert frames == list(range(frames[0], frames[0] + 9))
        motion = inventory.motion(clip)
        expected = np.array([action_of(index, frame) for frame in frames], np.float32)
        np.testing.assert_array_equal(motion["action"].numpy(), expected)
        np.testing.assert_array_equal(motion["state"].numpy(), -expected)
        assert (episode.task, episode.caption) == (TASKS[index % 2],) * 2
        seen.add(clip.video)
    assert len(seen) == len(LENGTHS) * len(CAMERAS)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_first_and_last_frame_of_an_episode_belong_to_it(
    sets: dict[str, Path], version: str
) -> None:
    inventory = inventory_of(config_of(sets[version]))
    for name, span in inventory.spans.items():
        index = int(name[-6:])
        assert span.stop - span.first == LENGTHS[index]
        ends = decode(inventory.episodes[name].video, [span.first, span.stop - 1])
        assert [who(picture)[1:] for picture in ends] == [(index, 0), (index, LENGTHS[index] - 1)]


def test_all_cameras_of_an_episode_are_held_out_together(sets: dict[str, Path]) -> None:
    for seed in range(5):
        inventory = inventory_of(config_of(sets["3.0"], f"data.seed={seed}"))
        splits = {
            split: {
                inventory.spans[clip.video].episode
                for clip in inventory.clips
                if clip.split == split
            }
            for split in ("train", "held_out")
        }
        assert len(splits["held_out"]) == 1
        assert not splits["train"] & splits["held_out"]


def test_statistics_are_of_training_episodes_alone_and_carry_the_names(
    sets: dict[str, Path],
) -> None:
    inventory = inventory_of(config_of(sets["3.0"]))
    held_out = {c.video for c in inventory.clips if c.split == "held_out"}
    left_out = {int(name[-6:]) for name in held_out}
    rows = np.array(
        [
            state_of(index, frame)
            for index, length in enumerate(LENGTHS)
            if index not in left_out
            for frame in range(length)
        ],
        np.float32,
    )
    found = inventory.motion_statistics()["state"]
    assert found["names"] == list(JOINTS)
    assert found["rows"] == len(rows)
    np.testing.assert_allclose(found["mean"], rows.mean(0, np.float64))
    np.testing.assert_allclose(found["std"], rows.std(0, np.float64))
    np.testing.assert_allclose([found["min"], found["max"]], [rows.min(0), rows.max(0)])
    quantiles = np.quantile(rows.astype(np.float64), [0.01, 0.99], axis=0)
    np.testing.assert_allclose([found["q01"], found["q99"]], quantiles)


@pytest.mark.parametrize("cameras", ["[wrist]", "[observation.images.wrist]", "[wrist,wrist]"])
def test_cameras_are_chosen_by_name(sets: dict[str, Path], cameras: str) -> None:
    found = find(config_of(sets["2.1"], f"data.cameras={cameras}").data)
    names = {episode.name.split("/")[0] for episode in found.episodes}
    assert (names, len(found.episodes)) == ({CAMERAS[1]}, len(LENGTHS))


def test_an_unknown_camera_is_an_error_that_names_the_known(sets: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"names left, unknown here; use top, wrist"):
        find(config_of(sets["2.1"], "data.cameras=[left]").data)


def test_a_caption_is_the_task_a_prompt_around_it_or_from_the_table(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    prompt = "data.prompt=An arm on a table, {task}."
    captions = {e.name: e.caption for e in find(config_of(sets["3.0"], prompt).data).episodes}
    assert captions[f"{CAMERAS[0]}/episode_000001"] == "An arm on a table, open the drawer."
    table = tmp_path / "captions.csv"
    table.write_text(f"video,caption\nepisode_000001,both\n{CAMERAS[0]}/episode_000002,one\n")
    found = find(config_of(sets["3.0"], prompt, f"data.captions={table}").data)
    captions = {e.name: (e.caption, e.task) for e in found.episodes}
    assert captions[f"{CAMERAS[0]}/episode_000001"] == ("both", TASKS[1])
    assert captions[f"{CAMERAS[1]}/episode_000001"] == ("both", TASKS[1])
    assert captions[f"{CAMERAS[0]}/episode_000002"] == ("one", TASKS[0])
    assert captions[f"{CAMERAS[1]}/episode_000002"][0].startswith("An arm on a table, pick")


def test_clips_at_another_rate_take_the_rows_of_the_moments_they_show(
    sets: dict[str, Path],
) -> None:
    inventory = inventory_of(config_of(sets["3.0"], f"data.fps={FPS / 2}"))
    clip = inventory.clips[-1]
    frames = np.array(clip.frame_indices) - inventory.spans[clip.video].first
    assert set(np.diff(frames)) == {2}
    np.testing.assert_array_equal(inventory.motion(clip)["action"][:, 1].numpy(), frames)


@pytest.mark.parametrize("reads", [40, pytest.param(2500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
@pytest.mark.parametrize("version", ["2.1", "3.0"])
def test_random_moments_of_random_episodes_show_their_frame(
    tmp_path: Path, version: str, codec: str, reads: int
) -> None:
    root = write_lerobot(tmp_path / "set", version, codec)
    inventory = inventory_of(config_of(root))
    generator = np.random.default_rng(0)
    names = sorted(inventory.spans)
    wrong = 0
    for _ in range(reads // 10):
        name = names[generator.integers(len(names))]
        camera, index = name.split("/")[0], int(name[-6:])
        times_s = generator.choice(LENGTHS[index], 10) / FPS
        span, info = inventory.spans[name], inventory.infos[name]
        begin_s = info.start_s[span.first]
        frames = [int(np.abs(info.start_s - begin_s - time_s).argmin()) for time_s in times_s]
        shown = decode(inventory.episodes[name].video, frames)
        for picture, time_s in zip(shown, times_s, strict=True):
            wrong += who(picture) != (camera, index, round(time_s * FPS))
    assert wrong == 0
