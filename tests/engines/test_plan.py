"""`cosmos-hydra stage=plan`: its screen, and its figures beside measured ones."""

from pathlib import Path

import pytest
from conftest import Command
from hydra import compose, initialize_config_dir

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config
from cosmos_hydra.engines.torch.gpus import RATES
from cosmos_hydra.engines.torch.planning import planned_degrees, training_memory
from cosmos_hydra.engines.torch.step_time import step_time, video_s
from cosmos_hydra.overrides import conf_folder

PLAN = ("stage=plan", "model=7b", "data=robot")
# 7b on H200s of 150.7 GB, clips of 56,320 tokens: seconds a step and GB allocated a GPU, measured
EAGER = ("parallel.recompute=full",)
TWO = (*EAGER, "plan.gpus=2")
FAST = ("parallel.recompute=save_mlp", "parallel.compile=true", "optim.state=bf16")
MEASURED = {
    EAGER: (19.5, 145.0),
    (*EAGER, "optim.state=bf16"): (20.11, 116.0),
    (*TWO, "parallel=fsdp", "trainer.global_batch_size=2"): (19.66, 97.3),
    (*TWO, "parallel=fsdp_tp", "parallel.tp=2"): (10.81, 79.1),
    (*TWO, "parallel=fsdp_cp", "parallel.cp=2"): (10.41, 74.7),
    FAST: (14.12, 124.2),
    (*FAST, "parallel.linears=float8"): (12.56, 123.8),
    (*FAST, "parallel.attention=flash4"): (12.75, 123.7),
    (*FAST, "parallel.attention=flash4", "parallel.linears=float8"): (11.19, 123.8),
}


def config_of(*typed: str) -> Config:
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return schema.load(compose("config", [*PLAN, *typed]))


@pytest.mark.parametrize("typed", MEASURED, ids=" ".join)
def test_it_is_near_what_was_measured(typed: tuple[str, ...]) -> None:
    measured_s, measured_gb = MEASURED[typed]
    config = config_of(*typed)
    degrees = planned_degrees(config)
    planned_s = step_time(config, degrees, RATES[config.plan.gpu]).total_s
    planned_gb = training_memory(config, degrees).total_gb
    assert planned_s == pytest.approx(measured_s, rel=0.2)
    assert planned_gb == pytest.approx(measured_gb, rel=0.1)


@pytest.mark.parametrize(
    ("attention", "is_compiled", "pass_s"),
    [("cudnn", True, 7.22), ("cudnn", False, 8.87), ("flash4", True, 6.81)],
)
def test_a_video_takes_about_what_was_measured(
    attention: str, is_compiled: bool, pass_s: float
) -> None:
    config = config_of(f"parallel.attention={attention}")
    planned_s = video_s(config, RATES[config.plan.gpu], is_compiled=is_compiled)
    assert planned_s == pytest.approx(36 * pass_s, rel=0.1)


def test_what_fits_is_said_with_time_and_disk(command: Command, tmp_path: Path) -> None:
    outcome = command(*PLAN, *FAST, cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    assert lines[0] == (
        "model=7b: 7.24 billion parameters, 7.24 trained; 1 clip a step of 121 frames at 704x1280 "
        "(56,320 tokens)"
    )
    assert lines[1] == "on 1 x h200, 151 GB each: dp_replicate=1 dp_shard=1 cp=1 tp=1"
    assert lines[3].startswith("  fits, ")
    assert "disk             58 GB a checkpoint (4 at most) in runs" in lines
    assert "  7.21 MB a sample, 1.05 MB a caption in samples/robot-cosmos-121x704x1280" in lines
    assert len(lines) <= 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "layout"),
    [
        (("model=14b",), "parallel=fsdp plan.gpus=2 trainer.global_batch_size=2 parallel."),
        (("model=14b", "plan.gpu=h100"), "parallel=fsdp_cp parallel.cp="),
        (("plan.gpu=h100", "parallel.recompute=full"), "parallel=fsdp plan.gpus=2 "),
    ],
)
def test_gpus_and_settings_are_changed_together_where_neither_is_enough(
    command: Command, tmp_path: Path, typed: tuple[str, ...], layout: str
) -> None:
    printed = command(*PLAN, *typed, cwd=tmp_path).stdout
    assert "\n  does not fit: " in printed
    change = printed.split("smallest change that fits: ")[1].split(" (")[0]
    assert change.startswith(layout)
    assert "  fits, " in command(*PLAN, *typed, *change.split(), cwd=tmp_path).stdout


def test_copies_of_the_weights_are_held_in_main_memory_by_each(
    command: Command, tmp_path: Path
) -> None:
    for parallel, copied_gb in (("fsdp", 87), ("ddp", 174)):
        typed = (f"parallel={parallel}", "plan.gpus=2", "trainer.global_batch_size=2")
        printed = command(*PLAN, *typed, cwd=tmp_path).stdout
        assert f"host memory      {copied_gb} GB of all ranks" in printed


def test_with_engine_nemo_the_figures_say_whose_they_are(command: Command, tmp_path: Path) -> None:
    printed = command(*PLAN, "engine=nemo", cwd=tmp_path).stdout
    assert "memory and time are those of engine=torch; Megatron keeps 18 bytes" in printed


def test_a_setting_that_fits_is_named(command: Command, tmp_path: Path) -> None:
    printed = command(*PLAN, cwd=tmp_path).stdout
    assert "smallest change that fits: parallel.recompute=full (" in printed
    printed = command(*PLAN, "model=14b", "peft=lora", cwd=tmp_path).stdout
    assert "parallel.recompute=full (142 GB); or parallel=fsdp_cp parallel.cp=8 " in printed


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            ("plan.gpus=3", "parallel.tp=2"),
            (
                "parallel.dp_replicate=1 parallel.dp_shard=1 parallel.cp=1 parallel.tp=2 do not "
                "multiply to the 3 ranks of this job; start 2 ranks, or set one of them to -1 "
                "(what is left)"
            ),
        ),
        (
            ("plan.gpu=a100", "parallel.linears=float8"),
            "parallel.linears=float8 does not run on plan.gpu=a100; use parallel.linears=default",
        ),
        (("plan.gpus=0",), "plan.gpus=0 is no number of GPUs; at least 1"),
    ],
)
def test_what_cannot_be_is_one_line(
    command: Command, tmp_path: Path, typed: tuple[str, ...], line: str
) -> None:
    outcome = command(*PLAN, *typed, cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (2, f"cosmos-hydra: {line}\n")
