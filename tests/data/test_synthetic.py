"""Rendered videos: a function of the seed, all different, with something that moves."""

from pathlib import Path

import numpy as np
import pytest
from raw_videos import small_config

from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.sources import find
from cosmos_hydra.data.sources.arm import MOTIONS, VIEWS, render
from cosmos_hydra.data.video import decode, probe
from cosmos_hydra.errors import ConfigError, StageError


def data_of(root: Path, *overrides: str) -> DataConfig:
    numbers = ("num_videos=3", "frames=9", "height=48", "width=64")
    sizes = [f"data.synthetic.{number}" for number in numbers]
    return small_config(root, *sizes, *overrides, data="synthetic").data


def contents(folder: Path) -> dict[str, bytes]:
    videos = (path for path in sorted(folder.iterdir()) if path.name != "render.json")
    return {path.name: path.read_bytes() for path in videos}


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_videos(tmp_path: Path) -> None:
    folders = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        data = data_of(tmp_path / name, f"data.seed={seed}")
        assert len(find(data).episodes) == 3
        folders.append(contents(Path(data.source)))
    assert folders[0] == folders[1]
    assert folders[0].keys() == folders[2].keys()
    assert all(folders[0][name] != folders[2][name] for name in folders[0] if name.endswith(".mp4"))


def test_a_video_does_not_depend_on_how_many_are_rendered(tmp_path: Path) -> None:
    few = data_of(tmp_path / "few")
    many = data_of(tmp_path / "many", "data.synthetic.num_videos=5")
    find(few)
    find(many)
    all_files = contents(Path(many.source))
    assert contents(Path(few.source)).items() <= all_files.items()
    assert len(all_files) == 10


def test_a_folder_rendered_with_other_settings_is_refused(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    find(data)
    before = contents(Path(data.source))
    data.synthetic.views = ["front"]
    refusal = (
        r'holds videos rendered otherwise \(data.synthetic.views: \["front", "left", "right", '
        r'"above"\] -> \["front"\]\); choose another data.source or data.name, or remove'
    )
    with pytest.raises(StageError, match=refusal):
        find(data)
    assert contents(Path(data.source)) == before


def test_unknown_views_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    data.synthetic.views = ["behind"]
    refusal = r"data.synthetic.views=\['behind'\] is unknown; use front, left, right, above"
    with pytest.raises(ConfigError, match=refusal):
        find(data)


def test_interrupted_rendering_goes_on(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    find(data)
    source = Path(data.source)
    before = contents(source)
    first, second, third = sorted(source.glob("*.mp4"))
    second.unlink()
    third.unlink()
    # what a kill leaves behind is no video, and goes
    (source / ".002_wave_right.999.tmp.mp4").write_bytes(b"half")
    kept = first.stat().st_mtime_ns
    assert len(find(data).episodes) == 3
    assert contents(source) == before
    assert first.stat().st_mtime_ns == kept


def test_captions_tell_motion_and_view_of_what_is_shown(tmp_path: Path) -> None:
    data = data_of(tmp_path, "data.synthetic.num_videos=16", "data.synthetic.frames=2")
    episodes = find(data).episodes
    texts = {episode.caption for episode in episodes}
    assert len(texts) == len(MOTIONS) * len(VIEWS) == 16
    assert "A robot arm lifts a red cube, seen from above." in texts
    assert {episode.caption_from for episode in episodes} == {"sidecar"}


def test_the_files_are_videos_of_the_size_and_rate_asked_for(tmp_path: Path) -> None:
    data = data_of(tmp_path, "data.synthetic.fps=10")
    path = find(data).episodes[0].video
    info = probe(path)
    assert (info.num_frames, info.fps, info.height, info.width) == (9, 10.0, 48, 64)
    assert decode(path, [0]).float().std() > 10


def draw(motion: str, view: str, seed: int = 0) -> np.ndarray:
    """Return 2 s at 6 frames a second, as numbers that can be subtracted."""
    frames = render(
        motion,
        view,
        num_frames=12,
        fps=6.0,
        height=48,
        width=64,
        generator=np.random.default_rng(seed),
    )
    return frames.astype(float)


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_arm_moves_and_the_room_does_not(motion: str) -> None:
    frames = draw(motion, "front")
    change = np.abs(frames - frames[0]).max(axis=(0, -1))
    assert (change > 40).mean() > 0.03
    assert (change == 0).mean() > 0.3


def test_every_motion_view_and_seed_looks_different() -> None:
    pictures = {(m, v): draw(m, v) for m in MOTIONS for v in VIEWS}
    pictures["wave", "other seed"] = draw("wave", "front", seed=1)
    keys = list(pictures)
    for index, one in enumerate(keys):
        for other in keys[index + 1 :]:
            assert np.abs(pictures[one] - pictures[other]).mean() > 1, (one, other)
