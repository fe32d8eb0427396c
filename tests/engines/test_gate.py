"""Before step 1 from given weights: a fault on either path is seen, named and refused."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Command
from small_runs import (
    SAMPLES,
    assert_same_tensors,
    initialised,
    rows_of,
    small_config,
    state_of,
    train,
    trainer_of,
)

from cosmos_hydra.config import Precision
from cosmos_hydra.engines.torch import gate, step, trainer
from cosmos_hydra.engines.torch.gate import check_paths
from cosmos_hydra.errors import StageError
from cosmos_hydra.sampling.videos import _load_denoiser
from cosmos_hydra.weights.diffusers import save_transformer
from cosmos_hydra.weights.locate import locate

CPU = torch.device("cpu")
Replacements = dict[str, tuple[Any, str, Callable[..., Any]]]
INPUT = "given: training and sampling give the network another {} ("
OUTPUT = "given: the estimates of training and sampling differ by "


@pytest.fixture(scope="module")
def weights(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diffusers folder in which every weight counts."""
    model = small_config(small_samples).model
    transformer = initialised(model, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in transformer.parameters():
            width = parameter.shape[-1] if parameter.dim() == 2 else 10
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.5 * width**-0.5 * noise
    folder = tmp_path_factory.mktemp("weights") / "given"
    save_transformer(transformer, model, folder)
    return folder


def starting(samples: Path, weights: Path, run: Path, *overrides: str) -> trainer.Trainer:
    return trainer_of(small_config(samples, f"resume.path={weights}", *overrides), run)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def started(
    request: pytest.FixtureRequest,
    small_samples: Path,
    weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> trainer.Trainer:
    """Return a trainer with the weights, in each precision; nothing of it changes."""
    folder = tmp_path_factory.mktemp("started")
    return starting(small_samples, weights, folder, f"parallel.precision={request.param}")


def check(started: trainer.Trainer) -> None:
    check_paths(started.stepper, started.loader(), "given")


def test_without_a_fault_the_paths_agree_and_the_error_is_told(
    started: trainer.Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    check(started)
    precision = started.config.parallel.precision
    (line,) = [m for m in caplog.messages if m.startswith("training and sampling differ by ")]
    error = float(line.split()[5])
    tolerance = gate.TOLERANCE[precision]
    print(line)  # noqa: T201
    told = (
        f" of the largest prediction (tolerance {tolerance:.0e} in {precision}) on a clip at sigma "
    )
    assert float(line.rpartition(told)[2]) > 0
    assert error < tolerance / 5


ADD_NOISE, DENOISE, CONDITIONED, TO_LATENT = (
    step.add_noise,
    step.denoise,
    gate.conditioned,
    gate.to_latent,
)


def in_training(change: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """Return a `denoise` whose network is given other inputs."""

    def denoise(network: Any, noisy: Any, sigma_B: Any, sigma_data: float) -> Any:
        return DENOISE(lambda *inputs: network(*change(*inputs)), noisy, sigma_B, sigma_data)

    return denoise


def in_sampling(change: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """Return a `conditioned` whose network is given other inputs."""

    def conditioned(network: Any, *others: Any) -> Any:
        return CONDITIONED(lambda *inputs: network(*change(*inputs)), *others)

    return conditioned


def padded_at(size: int) -> Callable[..., tuple[Any, ...]]:
    def change(x: Any, c: Any, text: Any, padding: Any, fps: Any) -> tuple[Any, ...]:
        return x, c, text, padding.repeat_interleave(size, 2).repeat_interleave(size, 3), fps

    return change


# where, what is replaced, by what; what is said
FAULTS: dict[str, tuple[Any, str, Any, str]] = {
    "training never scales by sigma_data": (
        step,
        "add_noise",
        lambda latent, sigma, noise, scale: ADD_NOISE(latent, sigma, noise, 1.0),
        INPUT.format("noisy latent"),
    ),
    "training scales by sigma_data twice": (
        step,
        "add_noise",
        lambda latent, sigma, noise, scale: ADD_NOISE(latent, sigma, noise, scale**2),
        INPUT.format("noisy latent"),
    ),
    "training conditions on another sigma_data": (
        step,
        "denoise",
        lambda network, noisy, sigma, scale: DENOISE(network, noisy, sigma, 1.0),
        INPUT.format("noisy latent"),
    ),
    "training noises twice": (
        step,
        "add_noise",
        lambda latent, sigma, noise, scale: ADD_NOISE(latent, 2 * sigma, noise, scale),
        INPUT.format("noisy latent"),
    ),
    "sampling never scales back": (gate, "to_latent", lambda clean, scale: clean[0], OUTPUT),
    "sampling scales back twice": (
        gate,
        "to_latent",
        lambda clean, scale: TO_LATENT(clean, scale**2),
        OUTPUT,
    ),
    "sampling conditions on another sigma_data": (
        gate,
        "conditioned",
        lambda net, text, pad, fps, guidance, scale, *rest: CONDITIONED(
            net, text, pad, fps, guidance, 1.0, *rest
        ),
        INPUT.format("noisy latent"),
    ),
    "sampling does not scale the network's input": (
        gate,
        "conditioned",
        in_sampling(lambda x, *rest: (2 * x, *rest)),
        INPUT.format("noisy latent"),
    ),
    "steps of 1000 in sampling": (
        gate,
        "conditioned",
        in_sampling(lambda x, c, *rest: (x, 1000 * c, *rest)),
        INPUT.format("noise level"),
    ),
    "noise level in bfloat16 in sampling": (
        gate,
        "conditioned",
        in_sampling(lambda x, c, *rest: (x, c.bfloat16().float(), *rest)),
        INPUT.format("noise level"),
    ),
    "sigma itself in training": (
        step,
        "denoise",
        in_training(lambda x, c: (x, (4 * c).exp())),
        INPUT.format("noise level"),
    ),
    "no text in sampling": (
        gate,
        "conditioned",
        in_sampling(lambda x, c, text, *rest: (x, c, 0 * text, *rest)),
        INPUT.format("text"),
    ),
    "text cut in sampling": (
        gate,
        "conditioned",
        in_sampling(lambda x, c, text, *rest: (x, c, text[:, :8], *rest)),
        INPUT.format("text") + r"[1, 16, 1024] and [1, 8, 1024]);",
    ),
    "no padding mask in sampling": (
        gate,
        "conditioned",
        in_sampling(lambda x, c, text, padding, fps: (x, c, text, 0 * padding, fps)),
        INPUT.format("padding mask"),
    ),
    "padding mask of pixels in sampling": (
        gate,
        "conditioned",
        in_sampling(padded_at(8)),
        INPUT.format("padding mask") + "[1, 1, 6, 8] and [1, 1, 48, 64]);",
    ),
    "padding mask shifted in sampling": (
        gate,
        "conditioned",
        in_sampling(lambda x, c, text, padding, fps: (x, c, text, padding.roll(1, 3), fps)),
        INPUT.format("padding mask"),
    ),
    "no fps in sampling": (
        gate,
        "conditioned",
        in_sampling(lambda x, c, text, padding, fps: (x, c, text, padding, None)),
        INPUT.format("fps") + "24.0 and None);",
    ),
    "another fps in sampling": (
        gate,
        "conditioned",
        in_sampling(lambda x, c, text, padding, fps: (x, c, text, padding, 30)),
        INPUT.format("fps") + "24.0 and 30);",
    ),
    "guidance at an estimate": (
        gate,
        "conditioned",
        lambda net, text, pad, fps, guidance, *rest: CONDITIONED(
            net, torch.cat([text, 0 * text]), pad, fps, 1.0, *rest
        ),
        INPUT.format("noisy latent") + "[1, 16, 2, 6, 8] and [2, 16, 2, 6, 8]);",
    ),
    "the raw prediction taken for the estimate in training": (
        step,
        "denoise",
        lambda network, noisy, sigma, scale: DENOISE(network, noisy, sigma, scale) - 0.9 * noisy,
        OUTPUT,
    ),
    "not a number in sampling": (
        gate,
        "to_latent",
        lambda clean, scale: TO_LATENT(clean, scale) * torch.nan,
        OUTPUT + "nan of the largest prediction",
    ),
    "half of the blocks in sampling": (
        gate,
        "_as_generated",
        lambda stepper: lambda *inputs: shortened(stepper.denoiser, inputs),
        OUTPUT,
    ),
}


def shortened(denoiser: Any, inputs: tuple[Any, ...]) -> torch.Tensor:
    blocks = denoiser.transformer.transformer_blocks
    denoiser.transformer.transformer_blocks = blocks[:1]
    try:
        return denoiser(*inputs)
    finally:
        denoiser.transformer.transformer_blocks = blocks


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_either_path_is_refused_with_what_differs(
    fault: str, started: trainer.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = gate._first_batch(started.loader())
    batch.padding_B1HW[..., -2:] = 1  # the right border is padded
    monkeypatch.setattr(gate, "_first_batch", lambda loader: batch)
    check(started)
    where, name, replacement, said = FAULTS[fault]
    monkeypatch.setattr(where, name, replacement)
    with pytest.raises(StageError) as refusal:
        check(started)
    message = str(refusal.value)
    assert message.startswith(said)
    assert message.endswith("; engine.force=true trains anyway")
    assert refusal.value.is_everywhere


def test_the_clip_keeps_its_text_whatever_the_dropout(
    small_samples: Path, weights: Path, tmp_path: Path
) -> None:
    dropping = starting(
        small_samples, weights, tmp_path, "model.objective.text_dropout=0.999999"
    ).loader()
    assert not any(batch.text_BTD.any() for batch in dropping.load(0))
    assert gate._first_batch(dropping).text_BTD.any()
    assert not any(batch.text_BTD.any() for batch in dropping.load(0))


def test_the_sampled_estimate_is_bitwise_the_one_of_generation(
    started: trainer.Trainer, weights: Path
) -> None:
    clip = gate._first_clip(gate._first_batch(started.loader()))
    precision: Precision = started.config.parallel.precision
    located = locate(str(weights), "resume.path")
    generating = _load_denoiser(started.config, located, CPU, precision)
    with torch.no_grad():
        expected = gate._sample(generating, clip, started.stepper)
        assert torch.equal(
            gate._sample(gate._as_generated(started.stepper), clip, started.stepper), expected
        )


def test_both_paths_scale_the_latent_of_the_sample_by_one_half(started: trainer.Trainer) -> None:
    """x0 = sigma_data * (z - mean) / std; samples hold the quotient."""
    clip = gate._first_clip(gate._first_batch(started.loader()))
    sample = started.store.load(started.loader().sample_ids(0)[0])
    assert torch.equal(clip.latent_BCFHW[0], sample.latent_CFHW.float())
    sigma = clip.sigma_B.item()
    x0_CFHW = 0.5 * sample.latent_CFHW.double()
    expected = (x0_CFHW + sigma * clip.noise_BCFHW[0]) / (sigma**2 + 0.25) ** 0.5
    seen: list[torch.Tensor] = []
    hook = started.denoiser.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        clean_BCFHW, _ = started.stepper.estimate(clip)
        latent_CFHW = gate._sample(lambda x, *_: seen.append(x) or x, clip, started.stepper)
    hook.remove()
    torch.testing.assert_close(clean_BCFHW[0].double(), x0_CFHW)
    for given in seen:
        torch.testing.assert_close(given[0].double(), expected, rtol=1e-5, atol=1e-6)
    assert len(seen) == 2
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25) ** 0.5
    noisy_CFHW = x0_CFHW + sigma * clip.noise_BCFHW[0]
    torch.testing.assert_close(
        latent_CFHW.double(), 2 * (c_skip * noisy_CFHW + c_out * expected), rtol=1e-5, atol=1e-5
    )


def test_training_is_bitwise_as_without_it(
    small_samples: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ("trainer.max_steps=2", "parallel.precision=bf16", "trainer.validate_every=0")
    config = small_config(small_samples, f"resume.path={weights}", *typed)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train(config, tmp_path / "with")
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(trainer, "check_paths", lambda *_: None)
    train(config, tmp_path / "without")
    assert_same_tensors(state_of(tmp_path / "with", 2), state_of(tmp_path / "without", 2))
    assert rows_of(tmp_path / "with") == rows_of(tmp_path / "without")


@pytest.mark.slow  # compiling takes 10 s
def test_compiled_blocks_are_compared_with_those_of_generation(
    small_samples: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cosmos_hydra")
    check(starting(small_samples, weights, tmp_path, "parallel.compile=true"))
    (line,) = [m for m in caplog.messages if m.startswith("training and sampling differ by ")]
    assert float(line.split()[5]) < 2e-5


def test_only_given_weights_are_checked_and_only_at_step_0(
    small_samples: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(
        trainer, "check_paths", lambda stepper, loader, given: checked.append(given)
    )
    quick = ("trainer.validate_every=0", "trainer.save_every=0")
    train(small_config(small_samples, *quick, "trainer.max_steps=1"), tmp_path / "random")
    assert checked == []
    for key in ("resume.path", "model.weights.path"):
        run = tmp_path / key
        train(small_config(small_samples, *quick, f"{key}={weights}", "trainer.max_steps=1"), run)
        assert checked.pop() == f"{key}={weights}"
        train(small_config(small_samples, *quick, f"{key}={weights}", "trainer.max_steps=2"), run)
        assert checked == []


def test_a_refusal_is_one_line_and_force_makes_it_a_warning(
    command: Command,
    small_samples: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(*FAULTS["sampling never scales back"][:3])
    typed = ["stage=post_train", *SMALL, f"data.path={small_samples / SAMPLES}"]
    typed += [f"resume.path={weights}", "trainer.max_steps=1", "log.report=false"]
    refused = command(*typed, "name=refused", cwd=tmp_path)
    assert refused.code == 1
    (line,) = refused.stderr.splitlines()
    said = f"resume.path={weights}: the estimates of training and sampling differ by "
    assert line.startswith(f"cosmos-hydra: {said}")
    assert "of the largest prediction (tolerance 1e-04 in fp32); try parallel.compile=false" in line
    assert not (tmp_path / "runs" / "refused" / "checkpoints").exists()
    forced = command(*typed, "name=forced", "engine.force=true", cwd=tmp_path)
    assert forced.code == 0
    assert said in forced.stdout + forced.stderr


def test_weights_worse_than_the_linear_denoiser_are_named(
    small_samples: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    typed = ("trainer.max_steps=1", "trainer.save_every=0")
    train(small_config(small_samples, *typed, f"resume.path={weights}"), tmp_path / "strange")
    first = rows_of(tmp_path / "strange")[0]
    assert first["val_loss"] > first["linear_loss"]
    (warning,) = [m for m in caplog.messages if "do not know" in m]
    assert warning == (
        f"resume.path={weights}: these weights do not know this data or were loaded wrong: their "
        f"loss {first['val_loss']:.4f} is above {first['linear_loss']:.4f}, that of the linear "
        f"denoiser; look whether model= and the tokenizer are theirs"
    )
    caplog.clear()
    known = ("trainer.max_steps=100", "optim.lr=3e-3", "trainer.validate_every=0")
    train(small_config(small_samples, *typed, *known), tmp_path / "known")
    train(
        small_config(small_samples, *typed, f"resume.path={tmp_path / 'known'}"),
        tmp_path / "next",
    )
    first = rows_of(tmp_path / "next")[0]
    assert first["val_loss"] < first["linear_loss"]
    assert not any("do not know" in message for message in caplog.messages)


V2W = ("model.condition_mask=true", "model.objective.given_frames=[1]")


def unmarked(x: Any, *others: Any) -> tuple[Any, ...]:
    return torch.cat([x[:, :16], 0 * x[:, 16:]], dim=1), *others


def test_given_frames_are_the_same_on_both_paths_or_it_is_said(
    small_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_config(small_samples, *V2W).model
    save_transformer(initialised(model, seed=0), model, tmp_path / "weights")
    started = starting(small_samples, tmp_path / "weights", tmp_path / "run", *V2W)
    check(started)
    monkeypatch.setattr(gate, "conditioned", in_sampling(unmarked))
    with pytest.raises(StageError, match="give the network another noisy latent"):
        check(started)
