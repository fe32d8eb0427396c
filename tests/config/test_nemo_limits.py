"""engine=nemo says what it needs and what it does not know, before anything is imported."""

import pytest
from composing import changed

from cosmos_hydra.checks import check
from cosmos_hydra.engines.nemo import limits

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
