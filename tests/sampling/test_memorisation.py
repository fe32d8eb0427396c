"""The nearest training clip of a generated one: that it is found, written, and never in the way."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from PIL import Image
from small_runs import SAMPLES, generate, small_config, train

from cosmos_hydra import runs
from cosmos_hydra.data.clips import HELD_OUT, TRAIN
from cosmos_hydra.data.store import SampleStore, open_store
from cosmos_hydra.data.video import decode, probe, to_pixels
from cosmos_hydra.engines.torch.checkpoint import Checkpoint, open_checkpoint
from cosmos_hydra.models.toy_tokenizer import ToyTokenizer
from cosmos_hydra.sampling import memorisation
from cosmos_hydra.sampling.memorisation import TrainingClips

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with samples of its own and a run `one` trained on them."""
    folder = tmp_path_factory.mktemp("memorisation")
    shutil.copytree(small_samples / SAMPLES, folder / SAMPLES)
    train(small_config(folder, "trainer.max_steps=1", "trainer.validate_every=0"), folder / "one")
    return folder


@pytest.fixture
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(runs.step_folder(folder / "one", 1))


@pytest.fixture
def store(folder: Path) -> SampleStore:
    return open_store(str(folder / SAMPLES))


def distances(store: SampleStore, latent_CFHW: torch.Tensor) -> dict[str, float]:
    """Return the distance to every training clip, plainly."""
    return {
        sample_id: float(
            np.sqrt(np.mean((store.load(sample_id).latent_CFHW.float() - latent_CFHW).numpy() ** 2))
        )
        for sample_id in store.splits[TRAIN]
    }


def nearest_of(latents: dict[Path, torch.Tensor], checkpoint: Checkpoint) -> list[dict]:
    """Return what is written beside each video."""
    clips = TrainingClips(checkpoint, ToyTokenizer.load(checkpoint.tokenizer), CPU)
    for mp4, latent_CFHW in latents.items():
        clips.write_nearest(mp4, latent_CFHW)
    return [json.loads(mp4.with_suffix(".nearest.json").read_text()) for mp4 in latents]


def test_a_copy_has_distance_zero_and_its_clip_is_shown_beside_it(
    checkpoint: Checkpoint, store: SampleStore, tmp_path: Path
) -> None:
    copied = store.splits[TRAIN][3]
    sample = store.load(copied)
    latent_CFHW = sample.latent_CFHW.float()
    noise_CFHW = torch.randn(latent_CFHW.shape, generator=torch.Generator().manual_seed(0))
    latents = {
        tmp_path / "copy.mp4": latent_CFHW,
        tmp_path / "near.mp4": latent_CFHW + 0.01 * noise_CFHW,
        tmp_path / "noise.mp4": noise_CFHW,
    }
    copy, near, noise = nearest_of(latents, checkpoint)
    entry = next(entry for entry in store.manifest["samples"] if entry["id"] == copied)
    assert copy == {
        "sample": copied,
        "video": entry["video"],
        "start_frame": entry["start_frame"],
        "caption": entry["caption"],
        "distance": 0.0,
        "held_out_distance": copy["held_out_distance"],
        "compared": 10,
    }
    assert near["sample"] == copied
    assert near["distance"] == pytest.approx(0.01, rel=0.1)
    plain = distances(store, noise_CFHW)
    assert noise["distance"] == pytest.approx(min(plain.values()), rel=1e-5)
    assert plain[str(noise["sample"])] == min(plain.values())
    held_out = [
        min(distances(store, store.load(sample_id).latent_CFHW.float()).values())
        for sample_id in store.splits[HELD_OUT]
    ]
    assert copy["held_out_distance"] == near["held_out_distance"] == noise["held_out_distance"]
    assert copy["held_out_distance"] == pytest.approx(np.median(held_out), rel=1e-5)
    # the clip itself, up to the video codec
    video = tmp_path / "copy.nearest.mp4"
    shown = decode(video, list(range(probe(video).num_frames))).numpy().astype(int)
    clip = to_pixels(ToyTokenizer.load(checkpoint.tokenizer).decode(latent_CFHW[None])[0])
    assert shown.shape == clip.shape
    assert np.abs(shown - clip).mean() < 4
    assert probe(video).fps == pytest.approx(sample.fps)


def test_of_many_training_clips_some_are_compared_always_the_same(
    checkpoint: Checkpoint,
    store: SampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(memorisation, "MAX_TRAINING_CLIPS", 4)
    latent_CFHW = torch.zeros(store.load(store.splits["train"][0]).latent_CFHW.shape)
    first, second = (
        nearest_of({tmp_path / f"{number}.mp4": latent_CFHW}, checkpoint)[0] for number in (1, 2)
    )
    assert first == second
    assert first["compared"] == 4
    assert "nearest training clips are looked for among 4 of 10" in caplog.messages


def test_without_held_out_clips_no_usual_distance_is_named(
    checkpoint: Checkpoint, store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memorisation, "MAX_HELD_OUT_CLIPS", 0)
    latent_CFHW = torch.zeros(store.load(store.splits["train"][0]).latent_CFHW.shape)
    [found] = nearest_of({tmp_path / "a.mp4": latent_CFHW}, checkpoint)
    assert found["held_out_distance"] is None


@pytest.mark.parametrize("change", ["other size", "no numbers"])
def test_a_clip_that_compares_with_none_gets_nothing(
    checkpoint: Checkpoint, store: SampleStore, tmp_path: Path, change: str
) -> None:
    C, F, H, W = store.load(store.splits["train"][0]).latent_CFHW.shape
    latent_CFHW = torch.zeros(C, F, H, W + (change == "other size"))
    if change == "no numbers":
        latent_CFHW[0, 0, 0, 0] = torch.nan
    clips = TrainingClips(checkpoint, ToyTokenizer.load(checkpoint.tokenizer), CPU)
    clips.write_nearest(tmp_path / "a.mp4", latent_CFHW)
    assert not list(tmp_path.iterdir())


def gone(samples: Path) -> str:
    shutil.rmtree(samples)
    return f"data.path={samples} holds no samples (no manifest.json); run: cosmos-hydra"


def changed(samples: Path) -> str:
    path = samples / "manifest.json"
    path.write_text(path.read_text().replace('"content_hash": "', '"content_hash": "0'))
    return f"data.path={samples} holds other samples than were trained on"


def damaged(samples: Path) -> str:
    for path in samples.glob("*.video_latent.safetensors"):
        path.write_bytes(b"half")
    return f"data.path={samples} sample "


@pytest.mark.parametrize("change", [gone, changed, damaged])
def test_videos_are_the_same_whether_or_not_the_samples_are_there(
    folder: Path, tmp_path: Path, change: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (with_samples,) = generate(folder / "one", tmp_path / "with", "generate.prompt=a robot")
    assert sorted(path.name.partition(".")[2] for path in (tmp_path / "with").iterdir()) == [
        "json",
        "mp4",
        "nearest.json",
        "nearest.mp4",
        "png",
    ]
    shutil.copytree(folder / SAMPLES, tmp_path / "kept")
    try:
        reason = change(folder / SAMPLES)  # type: ignore[operator]
        (without,) = generate(folder / "one", tmp_path / "without", "generate.prompt=a robot")
    finally:
        shutil.rmtree(folder / SAMPLES, ignore_errors=True)
        shutil.copytree(tmp_path / "kept", folder / SAMPLES)
    [line] = [m for m in caplog.messages if m.startswith("no nearest training clips: ")]
    assert line.startswith(f"no nearest training clips: {reason}")
    assert with_samples.read_bytes() == without.read_bytes()
    facts = [json.loads(path.with_suffix(".json").read_text()) for path in (with_samples, without)]
    assert {**facts[0], "command": None} == {**facts[1], "command": None}
    assert not list((tmp_path / "without").glob("*.nearest.*"))
    sheets = [path.parent / "contact_sheet.png" for path in (with_samples, without)]
    with Image.open(sheets[0]) as one, Image.open(sheets[1]) as other:
        assert one.size == other.size


def test_what_is_there_is_not_made_again_and_a_new_video_gets_its_own(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    typed = ["stage=generate", f"checkpoint={folder / 'one'}", "generate.prompt=a robot"]
    typed += ["generate.steps=2", "generate.out=out"]
    assert command(*typed, cwd=tmp_path).code == 0
    [nearest] = (tmp_path / "out").glob("*.nearest.json")
    before = nearest.stat().st_mtime_ns
    again = command(*typed, "generate.videos_per_prompt=2", cwd=tmp_path)
    assert "1 of 2 videos are there already" in again.stdout
    assert again.stdout.count("video: ") == 2
    assert nearest.stat().st_mtime_ns == before
    assert len(list((tmp_path / "out").glob("*.nearest.json"))) == 2
