"""engine=nemo says what it needs and what it does not know, before anything is imported."""

import pytest
from composing import changed

from cosmos_hydra.checks import check
from cosmos_hydra.engines.nemo import limits
from cosmos_hydra.engines.nemo.sizes import check_batch, check_fp8
from cosmos_hydra.engines.torch.degrees import Degrees
from cosmos_hydra.errors import ConfigError

NEMO = "engine.name=nemo"
UNKNOWN = {
    "peft.kind=lora": "peft.kind=lora is unknown to engine=nemo; use none, or engine=torch",
    "optim.state=bf16": "optim.state=bf16 is unknown to engine=nemo; use fp32, or engine=torch",
    "parallel.attention=flash": (
        "parallel.attention=flash is unknown to engine=nemo; use auto, or engine=torch"
    ),
    "parallel.compile=true": (
        "parallel.compile=true is unknown to engine=nemo; use false, or engine=torch"
    ),
    "parallel.offload_activations=true": (
        "parallel.offload_activations=true is unknown to engine=nemo; use false, or engine=torch"
    ),
    "parallel.recompute=save_matmul": (
        "parallel.recompute=save_matmul is unknown to engine=nemo; use none or full"
    ),
    "parallel.linears=float8": (
        "parallel.linears=float8 is of engine=torch; use engine.fp8=delayed "
        "with parallel.linears=default"
    ),
    "engine.device=cpu": "engine.device=cpu does not work with engine=nemo; use engine=torch",
}


def test_without_its_packages_there_is_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "PACKAGES", ("no-such-toolkit", "no-such-core"))
    advice = "run: pip install 'cosmos-hydra[nemo]'"
    both = "no-such-toolkit and no-such-core, which are not installed"
    assert check(changed(NEMO, stage="post_train")) == [f"engine.name=nemo needs {both}; {advice}"]
    monkeypatch.setattr(limits, "PACKAGES", ("hydra-core", "no-such-core"))
    one = "no-such-core, which is not installed"
    assert check(changed(NEMO, stage="post_train")) == [f"engine.name=nemo needs {one}; {advice}"]


def test_stages_that_do_not_train_do_not_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACKAGES", ("no-such-toolkit",))
    assert check(changed(NEMO, stage="preprocess")) == []


def test_fp8_needs_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACKAGES", ())
    monkeypatch.setattr(limits, "TRANSFORMER_ENGINE", "no-such-engine")
    advice = "run: pip install --no-build-isolation 'cosmos-hydra[te]'"
    assert check(changed(NEMO, "engine.fp8=delayed", stage="post_train")) == [
        f"engine.fp8=delayed needs no-such-engine, which is not installed; {advice}"
    ]
    assert check(changed(NEMO, stage="post_train")) == []


@pytest.mark.parametrize("override", UNKNOWN)
def test_what_it_does_not_know_is_refused(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACKAGES", ())
    assert check(changed(NEMO, override, stage="post_train")) == [UNKNOWN[override]]


def test_fp8_does_not_go_with_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACKAGES", ())
    monkeypatch.setattr(limits, "TRANSFORMER_ENGINE", "hydra-core")
    typed = ("engine.fp8=tensorwise", "parallel.precision=fp32")
    line = "engine.fp8=tensorwise does not go with parallel.precision=fp32"
    advice = "use bf16, or engine.fp8=none"
    assert check(changed(NEMO, *typed, stage="post_train")) == [f"{line}; {advice}"]


def test_fp8_wants_lengths_of_a_multiple_of_16() -> None:
    degrees = Degrees(dp_replicate=1, dp_shard=1, cp=2, tp=2)
    small, large = ((f"data.height={h}", f"data.width={w}") for h, w in ((48, 64), (704, 1280)))
    with pytest.raises(ConfigError) as raised:
        check_fp8(changed(NEMO, "engine.fp8=delayed", "data.frames=9", *small), degrees)
    found = "the tokens of a clip over parallel.cp is 12"
    advice = "change that, or use engine.fp8=none"
    assert str(raised.value).splitlines() == [
        f"engine.fp8=delayed needs multiples of 16, but {found}; {advice}"
    ]
    check_fp8(changed(NEMO, "data.frames=9", *small), degrees)
    check_fp8(changed(NEMO, "engine.fp8=delayed", *large), degrees)


def test_a_batch_is_a_whole_number_of_passes_on_every_rank() -> None:
    config = changed(NEMO, "trainer.global_batch_size=6", "trainer.micro_batch_size=2")
    check_batch(config, Degrees(1, 3, 1, 1))
    with pytest.raises(ConfigError) as raised:
        check_batch(config, Degrees(1, 2, 1, 1))
    assert str(raised.value) == (
        "trainer.global_batch_size=6 is not divisible by trainer.micro_batch_size=2 on 2 "
        "data-parallel ranks, as engine=nemo needs; use a multiple of 4"
    )
