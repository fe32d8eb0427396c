"""What does not fit is refused before anything is built, with the smallest change that does."""

import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Command
from guide import guide

from cosmos_hydra.config import Config, Stage
from cosmos_hydra.engines.torch.fit import check_memory, estimate, free_bytes_of
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.weights.diffusers import config_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TRAIN, GENERATE = Stage.post_train, Stage.generate
GB = 1e9
H100, H200 = 84 * GB, 139 * 1024**3  # free on an empty one
FULL = "parallel.recompute=full"
INT8 = "optim.state=int8"
FORCE = "; engine.force=true tries anyway"


def refusal(
    config: Config,
    free_bytes: float,
    purpose: Stage = TRAIN,
    device: torch.device = CUDA,
    can_change_clip: bool = True,
) -> str:
    with pytest.raises(ConfigError) as error:
        check_memory(config, device, purpose, can_change_clip, free_bytes)
    return str(error.value)


def needs(config: Config, purpose: Stage = TRAIN, device: torch.device = CUDA) -> str:
    return f"model={config.model.name} needs {estimate(config, device, purpose)} on {device} but "


def test_the_released_sizes_do_not_train_on_80_gb() -> None:
    for model in ("7b", "14b"):
        config, frugal = guide(model), guide(model, FULL, INT8)
        least_gb = estimate(frugal, CUDA, TRAIN).total_gb
        still = f"{needs(config)}84 GB are free; {FULL} {INT8} needs {least_gb:.0f}: still too much"
        assert refusal(config, H100).startswith(f"{still}; ")
    advice = (
        "; a smaller clip does not fit either, "
        f"use an otherwise empty GPU with at least {math.ceil(least_gb)} GB{FORCE}"
    )
    assert refusal(config, H100) == still + advice
    assert refusal(frugal, H100) == f"{needs(frugal)}84 GB are free{advice}"


def test_7b_trains_on_141_gb_once_blocks_are_recomputed() -> None:
    check_memory(guide("7b", FULL), CUDA, TRAIN, free_bytes=H200)
    config = guide("7b")
    full = estimate(guide("7b", FULL), CUDA, TRAIN).total_gb
    assert refusal(config, H200) == (
        f"{needs(config)}149 GB are free; smallest change that fits: {FULL} ({full:.0f} GB){FORCE}"
    )


def test_moments_of_two_bytes_come_before_a_smaller_clip() -> None:
    config = guide("7b", FULL)
    bf16_gb = estimate(guide("7b", FULL, "optim.state=bf16"), CUDA, TRAIN).total_gb
    assert refusal(config, 130 * GB) == (
        f"{needs(config)}130 GB are free; "
        f"smallest change that fits: optim.state=bf16 ({bf16_gb:.0f} GB){FORCE}"
    )


def test_blocks_compute_again_no_more_than_they_must() -> None:
    config = guide("7b", "data.frames=25")
    for policy in ("save_matmul", "save_mlp"):
        needed_gb = estimate(
            guide("7b", "data.frames=25", f"parallel.recompute={policy}"), CUDA, TRAIN
        )
        fits = f"that fits: parallel.recompute={policy} ("
        assert fits in refusal(config, GB * needed_gb.total_gb + 1)


def test_ranks_share_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    config = guide("14b", FULL, "parallel.dp_shard=-1", "trainer.global_batch_size=8")
    check_memory(config, CUDA, TRAIN, free_bytes=H200)
    copies = guide("14b", FULL, "parallel.dp_replicate=-1", "trainer.global_batch_size=8")
    assert " GB (weights 57, gradients 57, optimizer 114, " in refusal(copies, H200)


def test_fewer_frames_are_the_advice_where_settings_do_not_help() -> None:
    config = guide("7b", INT8, "parallel.precision=fp32")
    message = refusal(config, 90 * GB)
    frugal = f"{FULL} parallel.precision=bf16"
    frugal_gb = estimate(guide("7b", INT8, *frugal.split()), CUDA, TRAIN).total_gb
    assert f"; {frugal} needs {frugal_gb:.0f}: still too much; " in message
    remark = "; stage=preprocess has to make the samples again for that"
    advice = re.search(
        r"; smallest change that fits: (parallel.recompute=\w+) data.frames=(\d+) \(", message
    )
    assert message.endswith(f" GB){remark}{FORCE}")
    assert advice
    policy, frames = advice[1], int(advice[2])
    assert 9 < frames < 113
    fitting, larger = (
        guide("7b", INT8, "parallel.precision=fp32", policy, f"data.frames={number}")
        for number in (frames, frames + 8)
    )
    check_memory(fitting, CUDA, TRAIN, free_bytes=90 * GB)
    refusal(larger, 90 * GB)


def test_smaller_pictures_keep_their_aspect_ratio() -> None:
    config = guide("7b", FULL, INT8, "data.frames=9")
    free_bytes = 1e9 * estimate(config, CUDA, TRAIN).total_gb - 1
    message = refusal(config, free_bytes)
    advice = re.search(r"that fits: data.height=(\d+) data.width=(\d+) \(", message)
    assert advice
    height, width = int(advice[1]), int(advice[2])
    assert height % 16 == width % 16 == 0
    assert 600 < height < 704
    assert width / height == pytest.approx(1280 / 704, rel=0.02)
    smaller = (f"data.height={height}", f"data.width={width}", "data.frames=9")
    check_memory(guide("7b", FULL, INT8, *smaller), CUDA, TRAIN, free_bytes=free_bytes)


def test_the_batch_goes_first_and_only_as_far_as_needed() -> None:
    batch = ("trainer.global_batch_size=8", "trainer.micro_batch_size=8")
    config = guide("tiny", *batch)
    assert "smallest change that fits: trainer.micro_batch_size=4 (" in refusal(config, 18 * GB)
    assert "smallest change that fits: trainer.micro_batch_size=1 (" in refusal(config, 5 * GB)
    # gradients of a large model do not fit beside the activations of a second batch
    change = f"{FULL} trainer.global_batch_size=1 trainer.micro_batch_size=1"
    assert f"smallest change that fits: {change} (" in refusal(guide("7b", *batch), H200)


def test_previews_go_where_they_need_most() -> None:
    config = guide("tiny", FULL, "model.tokenizer.kind=cosmos", "model.tokenizer.path=folder")
    assert "smallest change that fits: trainer.preview_every=0 (" in refusal(config, 8 * GB)


def test_generation_of_a_given_clip_names_the_gpu_it_takes() -> None:
    config = guide("7b")
    one_branch = "; smallest change that fits: generate.guidance=0.0 ("
    assert one_branch in refusal(config, 30 * GB, GENERATE, can_change_clip=False)
    least = math.ceil(estimate(guide("7b", "generate.guidance=0"), CUDA, GENERATE).total_gb)
    assert refusal(config, 20 * GB, GENERATE, can_change_clip=False) == (
        f"{needs(config, GENERATE)}20 GB are free; "
        f"generate.guidance=0.0 needs {least}: still too much; "
        f"use an otherwise empty GPU with at least {least} GB{FORCE}"
    )
    message = refusal(config, 20 * GB, GENERATE)
    assert re.search(r"; smallest change that fits: data.frames=\d+ \(", message)
    assert "preprocess" not in message
    fp32 = refusal(guide("7b", "parallel.precision=fp32"), 50 * GB, GENERATE)
    assert "; smallest change that fits: parallel.precision=bf16 (" in fp32
    check_memory(config, CUDA, GENERATE, free_bytes=H100)


@pytest.mark.parametrize("changes", [(), SMALL, ("trainer.micro_batch_size=4",)], ids=len)
def test_the_toy_model_runs_anywhere(changes: tuple[str, ...]) -> None:
    config = guide("tiny", *changes, data="synthetic")
    for device in (CPU, CUDA):
        for purpose in (TRAIN, GENERATE):
            check_memory(config, device, purpose, free_bytes=2 * GB)


def test_a_large_model_on_a_cpu_is_refused_even_with_room() -> None:
    cores = torch.get_num_threads()
    hours = 6628 / 0.1 / cores / 3600
    assert refusal(guide("7b"), 2000 * GB, device=CPU) == (
        f"model=7b has 7.2 billion parameters: a training step would take this CPU {hours:.0f} "
        f"hours at best (6,628 TFLOP at 0.1 TFLOP/s a core, cores {cores}); "
        f"use a GPU, or model=tiny{FORCE}"
    )
    small = guide("7b", "data.frames=9", "data.height=64", "data.width=64")
    assert " seconds at best (2 TFLOP at " in refusal(small, 2000 * GB, device=CPU)
    message = refusal(guide("14b"), 2000 * GB, GENERATE, device=CPU)
    assert message.startswith("model=14b has 14.3 billion parameters: a video would take this CPU ")
    assert " days at best" in message


def test_force_turns_the_errors_into_warnings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_memory(guide("7b", "engine.force=true"), CPU, TRAIN, free_bytes=20 * GB)
    memory, speed = (record.getMessage() for record in caplog.records)
    assert memory.startswith(f"engine.force=true although {needs(guide('7b'), device=CPU)}20 GB")
    assert speed.startswith("engine.force=true although model=7b has 7.2 billion parameters: ")
    assert "tries anyway" not in memory + speed


def test_post_train_refuses_before_it_looks_at_samples(command: Command, tmp_path: Path) -> None:
    typed = ["stage=post_train", "model=7b", "data=robot", "data.source=x", "data.path=samples"]
    outcome = command(*typed, "model.weights.path=weights", "engine.device=cpu", cwd=tmp_path)
    assert outcome.code == 2
    memory, speed = outcome.stderr.splitlines()
    assert memory.startswith("cosmos-hydra: model=7b needs ")
    assert re.search(rf"; {FULL} optim.state=\w+ needs \d+: still too much", memory)
    assert memory.endswith(FORCE)
    assert speed.startswith("cosmos-hydra: model=7b has 7.2 billion parameters: ")
    assert list(tmp_path.iterdir()) == []


def test_generate_refuses_before_it_loads_weights(command: Command, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    numbers = json.dumps(config_of(guide("7b").model))
    (tmp_path / "weights" / "config.json").write_text(numbers)
    typed = ["stage=generate", "model=7b", "data=robot", "data.source=x", "checkpoint=weights"]
    outcome = command(*typed, "generate.prompt=a robot", "engine.device=cpu", cwd=tmp_path)
    assert outcome.code == 2
    assert outcome.stderr.startswith("cosmos-hydra: model=7b needs ")
    assert "a video would take this CPU" in outcome.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_the_allocator_keeps_is_free_to_us() -> None:
    torch.empty(10**9, dtype=torch.uint8, device="cuda")
    before = free_bytes_of(CUDA)
    held = torch.empty(10**9, dtype=torch.uint8, device="cuda")
    assert before - free_bytes_of(CUDA) == pytest.approx(held.nbytes, rel=0.1)
