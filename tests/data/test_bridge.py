"""BridgeData: instructions, actions and states beside the videos, and what is wrong with some."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_videos import inventory_of, small_config, write_moving_video

from cosmos_hydra.data.motion import read_motion
from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.data.sources import Found, find
from cosmos_hydra.errors import StageError

CPU = torch.device("cpu")


def write_episode(root: Path, episode: str, length: int = 17, **changed: Any) -> None:
    """Write a video whose state is the frame's number, and its annotation."""
    write_moving_video(
        root / "videos" / episode / "rgb.mp4", seed=sum(episode.encode()), frames=length
    )
    rows = np.arange(length, dtype=float)[:, None].repeat(7, axis=1)
    record = {
        "texts": [f"move the cube to {episode}"],
        "state": rows.tolist(),
        "action": (rows[:-1] + 0.5).tolist(),
        "continuous_gripper_state": (rows[:, 0] / 10).tolist(),
        **changed,
    }
    path = root / "annotation" / f"{episode}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def find_in(root: Path, *overrides: str) -> Found:
    return find(small_config(root, f"data.source={root}", *overrides, data="bridge").data)


def test_actions_and_states_lie_beside_the_samples_of_their_frames(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for number in range(5):
        write_episode(root, f"train/{number}", length=9)
    typed = ("data.frames=9", "data.chunks_per_video=1", "data.prompt=null")
    store = prepare(small_config(tmp_path, *typed, data="bridge"), CPU)
    assert [len(ids) for ids in store.splits.values()] == [4, 1]
    frames = torch.arange(9.0)[:, None]
    for ids in store.splits.values():
        motion = read_motion(store, ids[0])
        assert torch.equal(motion["state"][:, :7], frames.expand(9, 7))
        assert torch.allclose(motion["state"][:, 7:], frames / 10)
        assert torch.equal(motion["action"][:8], frames[:8].expand(8, 7) + 0.5)
        # no action leads on from the last frame
        assert motion["action"][8].isnan().all()
    found = store.manifest["motion"]
    assert found["state"]["names"][-2:] == ["gripper", "continuous_gripper"]
    assert (found["state"]["rows"], found["action"]["rows"]) == (4 * 9, 4 * 8)
    assert found["action"]["mean"] == [4.0] * 7
    video = store.manifest["videos"]["videos/train/0/rgb.mp4"]
    assert (video["episode"], video["task"]) == ("train/0", "move the cube to train/0")


def test_the_format_of_nemo_has_no_file_of_actions(tmp_path: Path) -> None:
    write_episode(tmp_path / "raw", "train/0")
    typed = ("data.format=nemo", "model.text_tokens=512", "data.chunks_per_video=1")
    store = prepare(small_config(tmp_path, *typed, data="bridge"), CPU)
    names = {path.name.split(".", 1)[1] for path in store.layout.folder.iterdir()}
    assert names == {
        "info.json",
        "video_latent.pth",
        "t5_text_embeddings.pth",
        "t5_text_mask.pth",
    }
    assert read_motion(store, "0") == {}
    assert store.manifest["motion"]["state"]["rows"] > 0


def test_other_actions_are_other_samples(tmp_path: Path) -> None:
    write_episode(tmp_path / "raw", "train/0")
    config = small_config(tmp_path, "data.chunks_per_video=1", data="bridge")
    (before,) = prepare(config, CPU).splits["train"]
    write_episode(tmp_path / "raw", "train/0", action=[[0.0] * 7] * 16)
    store = prepare(config, CPU)
    (after,) = store.splits["train"]
    assert before != after
    assert not read_motion(store, after)["action"][:16].any()


def test_damaged_actions_beside_a_sample_are_named(tmp_path: Path) -> None:
    write_episode(tmp_path / "raw", "train/0")
    store = prepare(small_config(tmp_path, "data.chunks_per_video=1", data="bridge"), CPU)
    sample_id = store.splits["train"][0]
    (store.layout.folder / f"{sample_id}.motion.safetensors").write_bytes(b"no tensors")
    with pytest.raises(StageError, match=r"\.motion\.safetensors is damaged \(.*preprocess again"):
        read_motion(store, sample_id)


DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "a row too short": ({"state": [[0.0] * 7] * 16 + [[0.0]]}, "annotation is damaged"),
    "no state": ({"state": None}, "annotation is damaged"),
    "six dimensions": ({"action": [[0.0] * 6] * 16}, r"rows of shape \(16, 6\) for 7 dimensions"),
    "not a number": ({"action": [[float("nan")] * 7] * 16}, "a value that is no finite number"),
    "words": ({"action": [["left"] * 7] * 16}, "annotation is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_annotation_costs_one_video_and_gives_a_reason(tmp_path: Path, name: str) -> None:
    changed, reason = DAMAGES[name]
    write_episode(tmp_path, "train/good")
    write_episode(tmp_path, "train/bad", **changed)
    found = find_in(tmp_path)
    assert [episode.episode for episode in found.episodes] == ["train/good"]
    assert list(found.failed) == ["videos/train/bad/rgb.mp4"]
    assert re.search(reason, found.failed["videos/train/bad/rgb.mp4"])


def test_videos_without_annotation_or_text_are_counted_with_their_reasons(tmp_path: Path) -> None:
    write_episode(tmp_path, "train/0")
    write_episode(tmp_path, "val/1", texts=[])
    write_episode(tmp_path, "val/2")
    (tmp_path / "annotation/val/2.json").unlink()
    found = find_in(tmp_path, "data.prompt=null")
    assert found.skipped == {
        "videos/val/1/rgb.mp4": "no caption: no texts in its annotation, no data.prompt"
    }
    assert found.failed == {"videos/val/2/rgb.mp4": "no annotation"}
    table = tmp_path / "captions.csv"
    table.write_text("video,caption\nvideos/val/1/rgb.mp4,given\nvideos/val/9/rgb.mp4,gone\n")
    found = find_in(tmp_path, f"data.captions={table}")
    assert [e.caption for e in found.episodes] == ["move the cube to train/0", "given"]
    assert found.failed["videos/val/9/rgb.mp4"].endswith("but not below data.source")


def test_rows_that_do_not_fit_the_frames_are_a_reason(tmp_path: Path) -> None:
    write_episode(tmp_path, "train/0")
    write_episode(tmp_path, "train/1", state=[[0.0] * 7] * 12, continuous_gripper_state=[0.0] * 12)
    config = small_config(tmp_path, f"data.source={tmp_path}", data="bridge")
    assert inventory_of(config).failed == {
        "videos/train/1/rgb.mp4": "state has 12 rows for 17 frames"
    }


def test_another_folder_is_refused_with_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"holds no videos/\{split\}/\{id\}/rgb.mp4; set it to"):
        find_in(tmp_path)
