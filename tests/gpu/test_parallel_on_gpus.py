"""Recompute, offload, small moments and kernels on a GPU, and every layout on two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from distributed_cases import train
from small_runs import SAMPLES, initialised, small_config
from torch.profiler import ProfilerActivity, profile

from cosmos_hydra.config import Attention, ParallelConfig, Recompute
from cosmos_hydra.engines.torch import flash4
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.kernels import kernel_of
from cosmos_hydra.engines.torch.recompute import apply_recompute
from cosmos_hydra.engines.torch.rounded_adamw import compiled, factors_of, update

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="less than two CUDA devices")
CUDA = torch.device("cuda")
# heads that two ranks can share
SETTINGS = (
    "model.num_heads=4",
    "model.num_layers=4",
    "trainer.micro_batch_size=1",
    "trainer.max_steps=6",
    "engine.device=cuda",
    "log.report=false",
)
ON_ONE = {
    "save_matmul": "parallel.recompute=save_matmul",
    "save_attention": "parallel.recompute=save_attention",
    "compiled save_attention": "parallel.recompute=save_attention parallel.compile=true",
    "compiled save_mlp": "parallel.recompute=save_mlp parallel.compile=true",
    "cudnn": "parallel.attention=cudnn",
    "flash4": "parallel.attention=flash4",
    "compiled flash4": (
        "parallel.attention=flash4 parallel.recompute=save_mlp parallel.compile=true"
    ),
    "flash": "parallel.attention=flash",
    "efficient": "parallel.attention=efficient",
    "math": "parallel.attention=math",
    "moments in bf16": "optim.state=bf16",
    "moments in bf16, compiled": "optim.state=bf16 parallel.compile=true",
    "moments in 8 bits": "optim.state=int8",
}
ON_TWO = {
    "ddp": "parallel=ddp",
    "fsdp": "parallel=fsdp",
    "fsdp_tp": "parallel=fsdp_tp parallel.tp=2",
    "fsdp_cp": "parallel=fsdp_cp parallel.cp=2",
    "fsdp, recompute": "parallel=fsdp parallel.recompute=save_attention",
    "fsdp, 8 bits": "parallel=fsdp optim.state=int8",
}


def is_hopper() -> bool:
    return torch.cuda.get_device_capability() >= (9, 0)


def losses(run: Path) -> list[float]:
    """Return the training losses and gradient norms of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if "loss" in row for name in ("loss", "grad_norm")]


@pytest.fixture(scope="module")
def plain(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run in each precision."""
    folder = tmp_path_factory.mktemp("plain")
    for precision in ("fp32", "bf16"):
        typed = (*SETTINGS, f"parallel.precision={precision}")
        train(small_samples, typed, folder / precision)
    return folder


def test_the_kernel_that_ran_is_recorded(plain: Path) -> None:
    best = ("flash4" if flash4.is_installed() else "cudnn") if is_hopper() else "flash"
    wanted = {"bf16": best, "fp32": "efficient"}
    for precision, attention in wanted.items():
        manifest = plain / precision / "checkpoints/step_000006/manifest.json"
        assert json.loads(manifest.read_text())["effective"]["attention"] == attention


@pytest.mark.parametrize("name", ON_ONE)
def test_a_run_comes_to_the_same_numbers(
    small_samples: Path, tmp_path: Path, plain: Path, name: str
) -> None:
    if not is_hopper() and ("cudnn" in name or "flash4" in name):
        pytest.skip("for Hopper and newer")
    if "flash4" in name and not flash4.is_installed():
        pytest.skip("flash-attn-4 is not installed")
    train(small_samples, (*SETTINGS, "parallel.precision=bf16", *ON_ONE[name].split()), tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(plain / "bf16"), rel=0.03)


@pytest.mark.skipif(not flash4.is_installed(), reason="flash-attn-4 is not installed")
@pytest.mark.parametrize("tokens", [(1000, 1000), (1000, 77)])
def test_flash_attention_4_is_attention_with_its_gradients(tokens: tuple[int, int]) -> None:
    L, T = tokens
    generator = torch.Generator(CUDA).manual_seed(0)
    given_BLNK = [
        torch.randn(2, count, 4, 128, generator=generator, device=CUDA).requires_grad_()
        for count in (L, T, T)
    ]
    results = {}
    for kernel in (Attention.flash4, Attention.math):
        inputs = [x_BLNK.transpose(1, 2) for x_BLNK in given_BLNK]
        with torch.autocast("cuda", torch.bfloat16, enabled=kernel is Attention.flash4):
            out_BNLK = kernel_of(kernel)(*inputs)
        grads = torch.autograd.grad(out_BNLK.float().square().sum(), given_BLNK)
        results[kernel] = [out_BNLK.float(), *grads]
    for found, wanted in zip(results[Attention.flash4], results[Attention.math], strict=True):
        assert (found - wanted).norm() < 0.01 * wanted.norm()
    halves = [x_BLNK.transpose(1, 2).detach().bfloat16().requires_grad_() for x_BLNK in given_BLNK]
    torch.library.opcheck(flash4.flash4, tuple(halves), test_utils="test_faketensor")


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="no float8 products",
)
@pytest.mark.parametrize("more", ["", "parallel.recompute=save_mlp parallel.compile=true"])
def test_float8_comes_near(small_samples: Path, tmp_path: Path, plain: Path, more: str) -> None:
    typed = ("parallel.precision=bf16", "parallel.linears=float8", *more.split())
    train(small_samples, (*SETTINGS, *typed), tmp_path)
    found = losses(tmp_path)
    assert found != losses(plain / "bf16")
    assert found[::2] == pytest.approx(losses(plain / "bf16")[::2], rel=0.05)


def test_the_compiled_update_of_moments_in_bfloat16_is_one_kernel_and_the_same_update() -> None:
    generator = torch.Generator(CUDA).manual_seed(0)
    key, factors = (
        torch.tensor(7, dtype=torch.int32),
        torch.tensor(factors_of(3, 1e-3, (0.9, 0.999), 1e-8, 0.1)),
    )
    compiled_update = compiled()
    for count in (4096, 1_000_003):
        start = [torch.randn(count, generator=generator, device=CUDA) for _ in range(4)]
        weight_N, gradient_N, mean_N, square_N = start[0], start[1], start[2], start[3].square()
        both = []
        for function in (update, compiled_update):
            tensors = [weight_N.clone(), gradient_N, mean_N.bfloat16(), square_N.bfloat16()]
            function(*tensors, key.to(CUDA), factors.to(CUDA))
            both.append(tensors)
        for eager_N, compiled_N in zip(*both, strict=True):
            # a multiplication and addition in one may end a digit further, once in many
            same = (eager_N == compiled_N).float().mean().item()
            assert same > (0.5 if eager_N.dtype is torch.float32 else 0.999)
            torch.testing.assert_close(compiled_N, eager_N, rtol=1e-2, atol=1e-6)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        compiled_update(*tensors, key.to(CUDA), factors.to(CUDA))
        torch.cuda.synchronize()
    names = [event.key for event in profiled.key_averages() if "triton" in event.key]
    assert len(names) == 1, names


def gradients_with(parallel: ParallelConfig) -> tuple[dict[str, torch.Tensor], float]:
    """Return every gradient of a pass over 4096 tokens, and the most MB allocated for it."""
    model = small_config(Path(), "model.num_layers=4", "model.num_heads=4").model
    transformer = initialised(model, seed=0).to(CUDA)
    generator = torch.Generator(CUDA).manual_seed(0)
    for parameter in transformer.parameters():  # zeros would hide gradients
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator, device=CUDA)
    set_attention(transformer, kernel_of(Attention.flash))
    apply_recompute(transformer, parallel, CUDA)
    latent_BCFHW = torch.randn(1, 17, 16, 32, 32, generator=generator, device=CUDA)
    text_BTD = torch.randn(1, model.text_tokens, model.text_dim, generator=generator, device=CUDA)
    sigma_B = torch.tensor([0.3], device=CUDA)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        out = transformer(latent_BCFHW, sigma_B, text_BTD, fps=24.0, return_dict=False)[0]
    out.square().mean().backward()
    peak_mb = (torch.cuda.max_memory_allocated() - before) / 1e6
    return {name: p.grad for name, p in transformer.named_parameters()}, peak_mb


def test_policies_and_offloading_take_less_memory_for_the_same_gradients() -> None:
    wanted, most_mb = gradients_with(ParallelConfig())
    policies = {
        "save_matmul": ParallelConfig(recompute=Recompute.save_matmul),
        "save_mlp": ParallelConfig(recompute=Recompute.save_mlp),
        "save_attention": ParallelConfig(recompute=Recompute.save_attention),
        "full": ParallelConfig(recompute=Recompute.full),
        "full, offloaded": ParallelConfig(recompute=Recompute.full, offload_activations=True),
        "offloaded": ParallelConfig(offload_activations=True),
    }
    peaks_mb = {"none": most_mb}
    for name, parallel in policies.items():
        found, peaks_mb[name] = gradients_with(parallel)
        for key, gradient in wanted.items():
            # attention's gradients are added up in any order
            assert (found[key] - gradient).norm() < 0.01 * gradient.norm(), (name, key)
    print(peaks_mb)  # noqa: T201 (a table to show)
    order = ["none", "save_matmul", "save_mlp", "save_attention", "full", "full, offloaded"]
    assert sorted(order, key=peaks_mb.__getitem__, reverse=True) == order
    assert peaks_mb["offloaded"] < peaks_mb["none"]


def on_two(samples: Path, folder: Path, *typed: str) -> Path:
    """Run post_train on two GPUs and return the run directory."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    settings = ["stage=post_train", *SMALL, *SETTINGS, f"data.path={samples / SAMPLES}", "name=two"]
    subprocess.run(
        [*launcher, "-m", "cosmos_hydra", *settings, *typed],
        cwd=folder,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "4"},
    )
    return folder / "runs/two"


@needs_two
@pytest.mark.parametrize("name", ON_TWO)
def test_two_gpus_come_to_the_numbers_of_one(
    small_samples: Path, tmp_path: Path, plain: Path, name: str
) -> None:
    run = on_two(small_samples, tmp_path, "parallel.precision=fp32", *ON_TWO[name].split())
    is_rounded = "int8" in ON_TWO[name]
    # matrix products in float32 on a GPU depend on their shapes in the last digits
    tolerance = 0.03 if is_rounded else 1e-4
    assert losses(run) == pytest.approx(losses(plain / "fp32"), rel=tolerance)


@needs_two
def test_a_ring_of_two_comes_to_the_numbers_of_one(small_samples: Path, tmp_path: Path) -> None:
    three_heads = ("model.num_heads=3", "parallel.precision=bf16")
    train(small_samples, (*SETTINGS, *three_heads), tmp_path / "one")
    run = on_two(small_samples, tmp_path, *three_heads, "parallel=fsdp_cp", "parallel.cp=2")
    assert losses(run) == pytest.approx(losses(tmp_path / "one"), rel=0.03)
