"""Real robot videos of two kinds: H.264 at 720p and 50 fps, MPEG-4 part 2 at 3 fps."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from raw_videos import small_config

from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.data.video import decode, probe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos(real_videos: Path) -> list[Path]:
    found = sorted(real_videos.glob("robot/*.mp4"))
    return found + sorted(real_videos.glob("bridge/videos/*/*/rgb.mp4"))


def test_every_file_is_probed_as_it_is(videos: list[Path]) -> None:
    assert len(videos) == 17
    seen = set()
    for path in videos:
        info = probe(path)
        seen.add((info.height, info.width, info.fps))
        with av.open(str(path)) as container:
            stamps = [
                float(packet.pts * packet.time_base)
                for packet in container.demux(video=0)
                if packet.size
            ]
        assert info.num_frames == len(stamps)
        np.testing.assert_allclose(info.start_s, np.sort(stamps) - min(stamps), atol=1e-5)
    assert seen == {(720, 1280, 50.0), (480, 640, 3.0)}


def test_frames_are_those_that_a_full_decode_gives(videos: list[Path]) -> None:
    generator = np.random.default_rng(0)
    for path in (videos[0], videos[1], *videos[2::5]):
        count = probe(path).num_frames
        indices = sorted(generator.choice(min(count, 60), 5, replace=False).tolist())
        with av.open(str(path)) as container:
            expected = [
                frame.to_ndarray(format="rgb24")
                for index, frame in enumerate(container.decode(video=0))
                if index in indices
            ]
        got = decode(path, indices).numpy().astype(int)
        assert np.abs(got - np.stack(expected)).max() <= 3, path


def test_the_robot_videos_become_samples(real_videos: Path, tmp_path: Path) -> None:
    config = small_config(
        tmp_path,
        f"data.source={real_videos / 'robot'}",
        "data.prompt=A video of sks teal robot.",
        "data.frames=9",
        "data.fps=10",
        "data.chunks_per_video=2",
    )
    store = prepare(config, CPU)
    assert store.manifest["counts"] == {"found": 2, "kept": 2, "skipped": {}, "failed": {}}
    assert [len(ids) for ids in store.splits.values()] == [4, 2]
    latents = torch.stack([store.load(i).latent_CFHW.float() for i in store.splits["train"]])
    assert latents.shape == (4, 16, 2, 6, 8)
    assert torch.allclose(latents.std(dim=(0, 2, 3, 4)), torch.ones(16), atol=0.02)
    spans = {
        entry["id"]: json.loads((tmp_path / f"samples/{entry['id']}.info.json").read_text())
        for entry in store.manifest["samples"]
    }
    assert {info["fps"] for info in spans.values()} == {10.0}
    assert {info["source"]["fps"] for info in spans.values()} == {50.0}


def test_the_bridge_videos_become_samples_with_their_own_captions(
    real_videos: Path, tmp_path: Path
) -> None:
    root = real_videos / "bridge"
    rows = []
    for path in sorted(root.glob("annotation/*/*.json")):
        record = json.loads(path.read_text())
        rows.append({"video": record["videos"][0]["video_path"], "caption": record["texts"][0]})
    table = tmp_path / "captions.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    overrides = [f"data.source={root}", f"data.captions={table}", "data.prompt=null"]
    store = prepare(small_config(tmp_path, *overrides, "data.fit=pad"), CPU)
    assert store.manifest["counts"] == {"found": 15, "kept": 15, "skipped": {}, "failed": {}}
    held_out = {
        entry["video"] for entry in store.manifest["samples"] if entry["split"] == "held_out"
    }
    assert len(held_out) == 2
    assert {entry["caption_from"] for entry in store.manifest["videos"].values()} == {"table"}
    assert store.manifest["videos"]["videos/val/27/rgb.mp4"]["caption"] == "pick up pot 50"
    # 640x480 fills 48x64 exactly
    assert not store.load(store.splits["train"][0]).padding_1HW.any()
