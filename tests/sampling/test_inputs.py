"""What a Video2World model is given: the right frames, kept in the video, part of its facts."""

import json
import shlex
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import Command
from PIL import Image
from small_runs import FPS, generate, small_config, train

from cosmos_hydra.data.store import open_store
from cosmos_hydra.data.video import decode, write_mp4
from cosmos_hydra.engines.torch.validation import Validation
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.sampling.inputs import find_input

V2W = ("model.name=toy_v2w", "model.condition_mask=true", "model.objective.given_frames=[0,1]")
LONGER = ("data.frames=17", "model.objective.given_frames=[1,2]")


@pytest.fixture(scope="module")
def trained(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a Video2World model."""
    run = tmp_path_factory.mktemp("trained") / "one"
    train(small_config(small_samples, "optim.lr=0.02", *V2W), run)
    return run


@pytest.fixture(scope="module")
def picture(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a picture like those of the training videos, but twice as large."""
    preview = tmp_path_factory.mktemp("picture") / "a picture, left.png"
    video = next(iter(sorted(small_samples.rglob("*.mp4"))))
    with av.open(str(video)) as container:
        first = next(container.decode(video=0)).to_image()
    first.resize((2 * first.width, 2 * first.height)).save(preview)
    return preview


def numbered(path: Path, frames: int, fps: float) -> Path:
    """Return a video whose frames are grey, each a step brighter than the one before."""
    shades = np.arange(frames) * 8 + 16
    frames_FHWC = np.tile(shades[:, None, None, None], (1, 48, 64, 3)).astype(np.uint8)
    write_mp4(path, frames_FHWC, fps)
    return path


def test_the_video_begins_with_the_picture(trained: Path, picture: Path, tmp_path: Path) -> None:
    (video,) = generate(trained, tmp_path, "generate.prompt=a robot", f"generate.input={picture}")
    first = decode(video, [0])[0].float()
    wanted = torch.from_numpy(np.array(Image.open(picture).resize((64, 48)))).float()
    error = (first - wanted).square().mean()
    assert 10 * torch.log10(255**2 / error) > 25  # dB, of a tokenizer fitted on such pictures


def test_other_pictures_give_other_videos_and_none_gives_one_too(
    trained: Path, picture: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 48), "green").save(tmp_path / "green.webp")
    names = set()
    for typed in (f"input={picture}", f"input={tmp_path / 'green.webp'}", "input=null"):
        (video,) = generate(trained, tmp_path, "generate.prompt=a robot", f"generate.{typed}")
        names.add((video.name, video.read_bytes()))
    assert len({name for name, _ in names}) == len({content for _, content in names}) == 3


def test_the_printed_command_makes_the_same_bytes(
    command: Command, trained: Path, picture: Path, tmp_path: Path
) -> None:
    (video,) = generate(trained, tmp_path, "generate.prompt=a robot", f"generate.input={picture}")
    sidecar = json.loads(video.with_suffix(".json").read_text())
    assert sidecar["given"]["frames"] == [0]
    before = video.read_bytes()
    video.with_suffix(".json").unlink()
    made = command(*shlex.split(sidecar["command"])[1:], "log.report=false", cwd=tmp_path)
    assert (made.code, made.stderr) == (0, "")
    assert f"given: {picture}" in made.stdout
    assert video.read_bytes() == before


@pytest.mark.parametrize(("fps", "expected"), [(FPS, range(11, 20)), (2 * FPS, range(3, 20, 2))])
def test_the_last_frames_of_a_video_are_given_at_the_rate_of_the_clip(
    fps: float, expected: range, tmp_path: Path
) -> None:
    video = numbered(tmp_path / "a.mp4", 20, fps)
    config = small_config(tmp_path, *V2W, *LONGER, f"data.fps={FPS}", f"generate.input={video}")
    given = find_input(config)
    assert given is not None
    assert given.frame_indices == tuple(expected)
    assert given.latent_frames == 2
    one = small_config(
        tmp_path,
        *(*V2W, *LONGER, f"data.fps={FPS}", f"generate.input={video}"),
        "generate.input_frames=1",
    )
    assert find_input(one).frame_indices == (19,)  # type: ignore[union-attr]


def test_validation_says_what_given_frames_tell_on_the_same_frames(
    trained: Path, small_samples: Path
) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [row for row in rows if "val_loss" in row]
    # at first the network predicts nothing, whatever it is given
    assert first["val_loss_given_0"] == first["val_loss_given_1"]
    assert last["val_loss_given_0"] != last["val_loss_given_1"]


ERRORS = {
    "generate.input=gone.png": "generate.input=gone.png is no file; set it to a picture or a video",
    "generate.input=text.png": "generate.input=text.png cannot be read (cannot identify image file",
    "generate.input=text.mp4": "generate.input=text.mp4 is no readable video (",
    "generate.input=short.mp4 generate.input_frames=9": (
        "generate.input_frames=9 is not what model=toy_v2w was trained with (given_frames=[0, 1]); "
        "use 1"
    ),
    "generate.input_frames=1": (
        "generate.input_frames=1 but generate.input=null; set it to a picture or a video"
    ),
}


def test_what_cannot_be_given_is_one_line(command: Command, trained: Path, tmp_path: Path) -> None:
    for name in ("text.png", "text.mp4"):
        # Pillow would start Ghostscript to show this
        (tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    numbered(tmp_path / "short.mp4", 5, FPS)
    for typed, message in ERRORS.items():
        asked = ("stage=generate", f"checkpoint={trained}", "generate.prompt=a robot")
        outcome = command(*asked, *typed.split(), cwd=tmp_path)
        assert (outcome.code, outcome.stdout) == (2, ""), typed
        assert outcome.stderr.startswith(f"cosmos-hydra: {message}"), outcome.stderr
        assert outcome.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"text.png", "text.mp4", "short.mp4"}


def test_too_short_a_video_and_a_model_that_needs_one_are_one_line(tmp_path: Path) -> None:
    video = numbered(tmp_path / "short.mp4", 5, FPS)
    typed = (*V2W, "data.frames=17", f"data.fps={FPS}")
    cases = {
        ("given_frames=[1,2]", f"input={video}", "input_frames=9"): (
            f"generate.input_frames=9 but {video} has 5 frames at {FPS:g} fps; use 1"
        ),
        ("given_frames=[2]", f"input={video}", "input_frames=null"): (
            f"generate.input={video} has 5 frames at {FPS:g} fps, but model=toy_v2w is given 9 or "
            f"more"
        ),
        ("given_frames=[3]", f"input={video}", "input_frames=null"): (
            f"generate.input={video} leaves nothing to make of data.frames=17 for model=toy_v2w "
            f"(given_frames=[3]); use a longer clip, or leave it out"
        ),
        ("given_frames=[1,2]", "input=null", "input_frames=null"): (
            "generate.input=null but model=toy_v2w was trained with given_frames=[1, 2]; set it to "
            "a picture or a video"
        ),
    }
    for (trained_with, *asked), message in cases.items():
        generate_keys = [f"generate.{one}" for one in asked]
        config = small_config(tmp_path, *typed, f"model.objective.{trained_with}", *generate_keys)
        with pytest.raises(ConfigError) as refused:
            find_input(config)
        assert str(refused.value) == message


def test_a_text2world_model_is_given_nothing(tmp_path: Path, picture: Path) -> None:
    config = small_config(tmp_path, f"generate.input={tmp_path / 'a.png'}")
    with pytest.raises(ConfigError, match="is a Text2World model; leave it out, or use a Video2"):
        find_input(config)


def test_every_sample_is_a_case_for_each_number_of_given_frames(small_samples: Path) -> None:
    typed = ("trainer.validation_samples=4", *V2W)
    config = small_config(small_samples, *typed)
    cases = Validation(config, open_store(config.data.path)).cases
    assert [int(case.given.mask_B1F11.sum()) for case in cases] == [0, 1] * (len(cases) // 2)  # type: ignore[union-attr]
    assert [case.sample.id for case in cases[::2]] == [case.sample.id for case in cases[1::2]]
