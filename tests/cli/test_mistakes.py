"""Mistakes on the command line: one line on stderr, exit code 2, and nothing left behind."""

import os
from pathlib import Path

import pytest
from conftest import Command

PREPROCESS = "stage=preprocess"
STAGES = (
    "download, preprocess, post_train, generate, pipeline, report, inspect, plan, doctor, export"
)
# what is typed, and the line after `cosmos-hydra: `
MISTAKES = {
    ("model=8b",): (
        "model=8b does not exist; options: 14b, 14b_video2world, 7b, 7b_video2world, tiny, "
        "tiny_video2world; did you mean 7b?"
    ),
    ("data=foldr",): (
        "data=foldr does not exist; options: bridge, folder, lerobot, robot, synthetic; "
        "did you mean folder?"
    ),
    ("engine=jax",): "engine=jax does not exist; options: nemo, torch",
    ("experiment=quickstrt",): (
        "experiment=quickstrt does not exist; options: cosmos_diffusion_14b_text2world_finetune, "
        "cosmos_diffusion_14b_video2world_finetune, cosmos_diffusion_7b_text2world_finetune, "
        "cosmos_diffusion_7b_video2world_finetune, quickstart; did you mean quickstart?"
    ),
    ("modl=7b",): "modl=7b is not a config key; did you mean model?",
    ("optimizer=adamw",): "optimizer=adamw is not a config key; did you mean optim?",
    ("experimnt=quickstart",): (
        "experimnt=quickstart is not a config key; did you mean experiment?"
    ),
    ("launch=torchrun", "hydra.launcher.gpus_per_node=0"): (
        "hydra.launcher.gpus_per_node=0 is for launch=slurm; leave it out, or choose that"
    ),
    ("hydra.launcher.nproc_per_node=2",): (
        "hydra.launcher.nproc_per_node=2 is for launch=torchrun or launch=slurm; leave it out, or "
        "choose that"
    ),
    ("launch=torchrun", "hydra.launcher.nproc_per_nod=2"): (
        "hydra.launcher.nproc_per_nod=2 is not a config key; "
        "did you mean hydra.launcher.nproc_per_node?"
    ),
    ("+modl=7b", PREPROCESS): "modl=7b is not a config key; did you mean model?",
    ("++data.hight=96", PREPROCESS): (
        "data.hight=96 is not a config key; did you mean data.height?"
    ),
    ("optim.lrr=1",): "optim.lrr=1 is not a config key; did you mean optim.lr?",
    ("lr=1e-4",): "lr=1e-4 is not a config key; did you mean optim.lr?",
    ("optim.lr=abc",): (
        "optim.lr=abc has the wrong type; value 'abc' of type 'str' could not be converted to Float"
    ),
    ("trainer.max_steps=1.5",): (
        "trainer.max_steps=1.5 has the wrong type; "
        "value '1.5' of type 'float' could not be converted to Integer"
    ),
    ("trainer.max_steps=null",): (
        "trainer.max_steps=null has the wrong type; field 'trainer.max_steps' is not Optional"
    ),
    ("trainer.max_steps=0", PREPROCESS): "trainer.max_steps=0 is too small; at least 1",
    (): (
        "stage is not set; choose stage=preprocess, post_train, generate or pipeline; "
        "or try experiment=quickstart"
    ),
    (
        "stage=foo",
    ): f"stage=foo has the wrong type; invalid value 'foo', expected one of [{STAGES}]",
    ("data.fit=squeeze",): (
        "data.fit=squeeze has the wrong type; "
        "invalid value 'squeeze', expected one of [crop, pad, stretch]"
    ),
    (PREPROCESS, "data=folder"): "data.source=null; set it to the folder of your videos",
    ("optim.lr=(1",): (
        "optim.lr=(1 is not a valid override; quote the value: 'key=\"some text\"' in the shell"
    ),
    ("preprocess",): "preprocess has no value; did you mean stage=preprocess?",
    ("quickstart",): "quickstart has no value; write key=value",
    ("optim.lr=1e-4,1e-3",): (
        "optim.lr=1e-4,1e-3 holds several values; add -m to run a job for each"
    ),
    ("trainer.max_steps=${nowhere}", PREPROCESS): (
        "trainer.max_steps=${nowhere} does not resolve; interpolation key 'nowhere' not found"
    ),
    ("data.path=${nowhere}", PREPROCESS): (
        "data.path='${nowhere}' does not resolve; interpolation key 'nowhere' not found"
    ),
    (PREPROCESS, "engine.device=gpu"): "engine.device=gpu is no device; use auto, cpu or cuda",
    ("stage=generate",): (
        "checkpoint=null; set it to a run, a step of a run or a diffusers folder"
    ),
    ("stage=generate", "checkpoint=runs/none"): "checkpoint=runs/none does not exist",
    (PREPROCESS, "model.patch_size=[1,2]"): (
        "model.patch_size=[1, 2] is wrong; three numbers above 0: time, height, width"
    ),
}


@pytest.mark.parametrize("typed", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_that_says_what_is_right(
    command: Command, tmp_path: Path, typed: tuple[str, ...]
) -> None:
    refused = command(*typed, cwd=tmp_path)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == f"cosmos-hydra: {MISTAKES[typed]}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there_is_refused(command: Command, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    refused = command(PREPROCESS, "engine.device=cuda", cwd=tmp_path)
    assert (refused.code, refused.stderr) == (
        2,
        "cosmos-hydra: engine.device=cuda but torch sees no CUDA device; use cpu or auto\n",
    )


def test_several_problems_are_one_line_each(command: Command, tmp_path: Path) -> None:
    refused = command(
        *("stage=post_train", "model=7b", "trainer.max_steps=0", "data.height=100"), cwd=tmp_path
    )
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr.splitlines() == [
        "cosmos-hydra: trainer.max_steps=0 is too small; at least 1",
        "cosmos-hydra: data.height=100 is no multiple of 16; use 96 or 112",
        (
            "cosmos-hydra: model.weights.path=null but model=7b is not trained from scratch; "
            "run: cosmos-hydra stage=download model=7b, or set it to weights of diffusers, the "
            "original code or NeMo"
        ),
    ]


def test_a_refused_command_leaves_an_existing_run_as_it_was(
    command: Command, tmp_path: Path
) -> None:
    record = tmp_path / "runs/tiny-synthetic/metrics.jsonl"
    record.parent.mkdir(parents=True)
    record.write_text("{}\n")
    assert command(PREPROCESS, "trainer.max_steps=0", cwd=tmp_path).code == 2
    assert record.read_text() == "{}\n"


@pytest.mark.parametrize("before", [None, "0"])
def test_hydras_debug_variable_is_as_it_was_before(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if before is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", before)
    for typed in (("model=8b",), ("--cfg", "job")):
        command(*typed, cwd=tmp_path)
        assert os.environ.get("HYDRA_FULL_ERROR") == before


def test_frames_are_cut_to_8k_plus_1_and_the_message_says_so(
    command: Command, tmp_path: Path
) -> None:
    refused = command(
        PREPROCESS, "data=folder", "data.source=none", "data.frames=120", cwd=tmp_path
    )
    assert refused.code == 1
    assert refused.stdout == "warning: data.frames=120 is not 8k+1: 113 are used, 7 dropped\n"
    assert refused.stderr == "cosmos-hydra: data.source=none is no folder; set it to your videos\n"
