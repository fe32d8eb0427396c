"""The stage `generate`: from a run or a step, prompts and seeds, what lies on disk afterwards."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from PIL import Image
from small_runs import FPS, generate, small_config, train

from cosmos_hydra import runs
from cosmos_hydra.data.video import decode, probe
from cosmos_hydra.engines.torch.shard import compile_blocks
from cosmos_hydra.sampling import videos

QUICK = ("stage=generate", "generate.steps=2")


@pytest.fixture(scope="module")
def trained(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run at a rate that makes its text and steps matter."""
    run = tmp_path_factory.mktemp("trained") / "one"
    train(small_config(small_samples, "optim.lr=0.02"), run)
    return run


def sidecars(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*_??????.json"))]


def test_a_run_stands_for_its_newest_step_and_a_step_for_itself(
    trained: Path, tmp_path: Path
) -> None:
    content = {}
    for name, checkpoint in (
        ("run", trained),
        ("newest", runs.step_folder(trained, 4)),
        ("older", runs.step_folder(trained, 2)),
    ):
        (video,) = generate(checkpoint, tmp_path / name, "generate.prompt=a robot")
        content[name] = video.read_bytes()
    assert content["run"] == content["newest"] != content["older"]


def test_compiled_blocks_make_the_same_video_and_the_sidecar_says_so(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(videos, "compile_blocks", lambda blocks: compile_blocks(blocks, counting))
    frames = {}
    for value in ("false", "true"):
        typed = ("generate.prompt=a robot", f"generate.compile={value}")
        (video,) = generate(trained, tmp_path / value, *typed)
        (sidecar,) = sidecars(tmp_path / value)
        assert sidecar["compiled"] == (value == "true")
        assert f"generate.compile={value}" in sidecar["command"]
        assert len(compiled) == (value == "true")  # once for all blocks
        frames[value] = decode(video, list(range(9))).float()
    assert (frames["true"] - frames["false"]).abs().mean() < 1


def test_without_a_checkpoint_the_run_of_the_name_is_taken(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "one"
    train(small_config(small_samples, "trainer.max_steps=1", "trainer.validate_every=0"), run)
    typed = [*QUICK, "name=one", "generate.prompt=a robot"]
    for out, place in ((["generate.out=there"], tmp_path / "there"), ([], run / "videos")):
        assert command(*typed, *out, cwd=tmp_path).code == 0
        assert len(list(place.glob("*_??????.mp4"))) == 1


def test_without_a_prompt_the_training_captions_are_shown_below_the_run(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "one"
    train(small_config(small_samples, "trainer.max_steps=1", "trainer.validate_every=0"), run)
    outcome = command(*QUICK, "checkpoint=runs/one", "generate.max_captions=2", cwd=tmp_path)
    assert outcome.code == 0
    found = sidecars(run / "videos")
    assert len(found) == 2
    assert all("robot arm" in facts["prompt"] for facts in found)
    assert f"picture: {Path('runs/one/videos/contact_sheet.png')}" in outcome.stdout


def test_every_prompt_and_seed_gets_a_video_a_sidecar_and_a_row_of_the_picture(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a robot\n\n  it's a (red), 'odd' one  \n")
    typed = [*QUICK, f"checkpoint={trained}", "generate.prompt_file=prompts.txt"]
    typed += ["generate.videos_per_prompt=2", "generate.seed=7", "generate.out=out"]
    outcome = command(*typed, cwd=tmp_path)
    assert outcome.code == 0
    out = tmp_path / "out"
    found = {(facts["prompt"], facts["seed"]) for facts in sidecars(out)}
    assert found == {(p, s) for p in ("a robot", "it's a (red), 'odd' one") for s in (7, 8)}
    videos = sorted(out.glob("*_??????.mp4"))
    assert [path.name.partition("_seed")[0] for path in videos] == 2 * ["a-robot"] + 2 * [
        "it-s-a-red-odd-one"
    ]
    assert len({path.read_bytes() for path in videos}) == 4
    for path in videos:
        info = probe(path)
        assert (info.num_frames, info.height, info.width) == (9, 48, 64)
        assert info.fps == pytest.approx(FPS)
    with Image.open(out / "contact_sheet.png") as picture:
        # six frames of 64x48 shown at 160x120, four rows under their labels
        assert picture.size == (6 * 160, 4 * (120 + 18))
    assert outcome.stdout.count("video: ") == 4


def test_videos_that_are_there_are_not_made_twice(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (video,) = generate(trained, tmp_path, "generate.prompt=a robot")
    before, content = video.stat().st_mtime_ns, video.read_bytes()
    both = generate(trained, tmp_path, "generate.prompt=a robot", "generate.videos_per_prompt=2")
    assert "1 of 2 videos are there already" in caplog.messages
    assert both[0] == video
    assert video.stat().st_mtime_ns == before
    # a video without its sidecar was cut off by a kill and is made again
    video.write_bytes(b"half")
    video.with_suffix(".json").unlink()
    generate(trained, tmp_path, "generate.prompt=a robot")
    assert video.read_bytes() == content


def test_guidance_negative_prompt_sampler_and_steps_change_the_video(
    trained: Path, tmp_path: Path
) -> None:
    variants = (
        ["generate.guidance=0"],
        ["generate.guidance=40"],
        ["generate.guidance=40", "generate.negative_prompt=dark and blurry"],
        ["generate.sampler=euler"],
        ["generate.steps=3"],
        # the same as the first: without guidance nothing is steered away from
        ["generate.guidance=0", "generate.negative_prompt=dark"],
    )
    videos = [generate(trained, tmp_path, "generate.prompt=a robot", *v)[0] for v in variants]
    assert len(set(videos)) == len(variants)
    contents = [path.read_bytes() for path in videos]
    assert len(set(contents[:-1])) == len(variants) - 1
    assert contents[-1] == contents[0]


def test_a_typed_clip_or_model_that_contradicts_the_checkpoint_is_refused(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    typed = [*QUICK, f"checkpoint={trained}", "generate.prompt=a robot", "generate.out=out"]
    refused = command(*typed, "data.frames=33", cwd=tmp_path)
    assert (refused.code, refused.stderr) == (
        2,
        "cosmos-hydra: data.frames=33 but the checkpoint has 9; leave it out\n",
    )
    refused = command(*typed, "model=7b", "data.fps=31", cwd=tmp_path)
    assert refused.code == 2
    lines = refused.stderr.splitlines()
    for key, ours, theirs in (
        ("model.num_layers", 28, 2),
        ("model.text_encoder.kind", "t5", "hash"),
        ("data.fps", 31.0, FPS),
    ):
        expected = f"cosmos-hydra: {key}={ours} but the checkpoint has {theirs}; leave it out"
        assert expected in lines
    assert not list(tmp_path.rglob("*.mp4"))


def test_typed_keys_that_agree_or_do_not_matter_are_allowed(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    typed = [*QUICK, f"checkpoint={trained}", "generate.prompt=a robot", "generate.out=out"]
    harmless = ["model.num_layers=2", "data.frames=9", f"data.fps={FPS}", "data.height=48"]
    harmless += ["trainer.max_steps=99", "engine.device=cpu", "optim.lr=1", "seed=5"]
    generate(trained, tmp_path / "out", "generate.prompt=a robot")
    again = command(*typed, *harmless, cwd=tmp_path)
    assert again.code == 0
    assert "1 of 1 videos are there already" in again.stdout


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ((), "checkpoint=null; set it to a run, a step of a run or a diffusers folder"),
        (("checkpoint=nowhere",), "checkpoint=nowhere does not exist"),
        (
            ("checkpoint={run}", "generate.prompt_file=nowhere.txt"),
            "generate.prompt_file=nowhere.txt is no file; one prompt a line",
        ),
        (
            ("checkpoint={run}", "generate.prompt_file=empty.txt"),
            "generate.prompt_file=empty.txt is empty; one prompt a line",
        ),
        (
            ("checkpoint={run}", "generate.prompt=a", "generate.prompt_file=empty.txt"),
            "generate.prompt and generate.prompt_file are both set; choose one",
        ),
        (("checkpoint={run}", "generate.steps=0"), "generate.steps=0 is too small; at least 1"),
    ],
)
def test_what_is_missing_is_one_line(
    command: Command, trained: Path, tmp_path: Path, typed: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    arguments = [item.format(run=trained) for item in typed]
    refused = command("stage=generate", *arguments, "generate.out=out", cwd=tmp_path)
    assert (refused.code, refused.stderr) == (2, f"cosmos-hydra: {message}\n")
