"""Tokens and keys: found, tried and never shown."""

from pathlib import Path

import pytest
from healthy_machine import Machine

from cosmos_hydra.doctor import accounts
from cosmos_hydra.doctor.findings import Level, fix, ok, warn

CANARY = "hf_canary0123456789abcdef"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_token_that_the_hub_takes_is_in_order(machine: Machine) -> None:
    machine.patch.setenv("HF_TOKEN", CANARY)
    with machine.hub(200) as shown:
        assert machine.findings()["HF token"] == ok("accepted by the Hub")
    assert shown == [f"Bearer {CANARY}"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_replaced_where_it_came_from(machine: Machine, status: int) -> None:
    text = f"the Hub refuses it (HTTP {status})"
    with machine.hub(status):
        (machine.folder / "home/token").write_text(CANARY)
        finding = fix(text, "hf auth logout && hf auth login")
        assert machine.only_problem() == ("HF token", finding)
        machine.patch.setenv("HF_TOKEN", CANARY)
        finding = fix(text, "unset HF_TOKEN && hf auth login")
        assert machine.only_problem() == ("HF token", finding)


def test_a_hub_in_trouble_is_a_warning(machine: Machine) -> None:
    machine.patch.setenv("HF_TOKEN", CANARY)
    with machine.hub(503):
        topic, finding = machine.only_problem()
    assert (topic, finding.level) == ("HF token", Level.WARN)
    assert finding.text == "present, not tried: the Hub answers HTTP 503"
    assert finding.advice == "cosmos-hydra stage=doctor in a few minutes"


def test_a_hub_that_cannot_be_reached_is_a_warning(machine: Machine) -> None:
    machine.patch.setenv("HF_TOKEN", CANARY)
    with machine.hub(200):
        pass
    topic, finding = machine.only_problem()
    assert (topic, finding.level) == ("HF token", Level.WARN)
    assert finding.text.startswith("present, not tried: the Hub does not answer (Connect")
    assert finding.advice.startswith("export HF_HUB_OFFLINE=1 to work offline")


def test_a_hub_that_never_answers_is_given_up_on(machine: Machine) -> None:
    machine.patch.setenv("HF_TOKEN", CANARY)
    machine.patch.setattr(accounts, "HUB_TIMEOUT_S", 0.2)
    with machine.hub(None):
        topic, finding = machine.only_problem()
    assert topic == "HF token"
    assert finding.text == "present, not tried: the Hub does not answer (TimeoutError)"


def test_offline_the_hub_is_not_asked(machine: Machine) -> None:
    machine.patch.setenv("HF_TOKEN", CANARY)
    machine.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with machine.hub(401) as shown:
        text = "present, not tried: HF_HUB_OFFLINE is set"
        assert machine.findings()["HF token"] == ok(text)
    assert shown == []


def test_no_token_matters_only_to_released_models(machine: Machine) -> None:
    assert machine.findings()["HF token"] == ok("none, and model=tiny needs none")
    finding = warn("none, gated models cannot be downloaded", "hf auth login")
    assert machine.findings(model="7b")["HF token"] == finding


def test_weights_that_are_not_there_are_to_be_downloaded(machine: Machine) -> None:
    assert machine.findings()["weights"] == ok("nothing to download for model=tiny")
    finding = warn(
        "not downloaded: transformer (diffusers), tokenizer, text encoder",
        "cosmos-hydra stage=download model=7b",
    )
    assert machine.findings(model="7b")["weights"] == finding
    paths = [f"model.{name}.path=here" for name in ("weights", "tokenizer")]
    finding = warn("not downloaded: text encoder", "cosmos-hydra stage=download model=7b")
    assert machine.findings(*paths, model="7b")["weights"] == finding


def test_wandb_needs_a_key_only_to_be_online(machine: Machine) -> None:
    [version] = {machine.findings()["wandb"].text.partition(",")[0]}
    text = f"{version}, has no key, log.wandb=offline needs none"
    assert machine.findings("log.wandb=offline")["wandb"] == ok(text)
    finding = fix(f"{version}, has no key for log.wandb=online", "wandb login")
    assert machine.only_problem("log.wandb=online") == ("wandb", finding)
    machine.patch.setenv("WANDB_API_KEY", CANARY)
    assert machine.findings("log.wandb=online")["wandb"] == ok(f"{version}, has a key")


def test_wandbs_key_must_be_for_the_configured_server(machine: Machine) -> None:
    home = machine.folder / "home"
    (home / ".netrc").write_text(f"machine wandb.example login user password {CANARY}\n")
    assert machine.findings("log.wandb=online")["wandb"].level is Level.FIX
    (home / ".config/wandb").mkdir(parents=True)
    (home / ".config/wandb/settings").write_text("[default]\nbase_url = https://wandb.example\n")
    assert machine.findings("log.wandb=online")["wandb"].level is Level.OK
    machine.patch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    assert machine.findings("log.wandb=online")["wandb"].level is Level.FIX
    (home / "keys").write_text(f"machine api.wandb.ai login user password {CANARY}\n")
    machine.patch.setenv("NETRC", str(home / "keys"))
    assert machine.findings("log.wandb=online")["wandb"].level is Level.OK


def test_a_damaged_password_file_is_no_key_and_is_not_quoted(machine: Machine) -> None:
    (machine.folder / "home/.netrc").write_text(f"machine api.wandb.ai {CANARY}\n")
    topic, finding = machine.only_problem("log.wandb=online")
    assert (topic, finding.advice) == ("wandb", "wandb login")
    assert CANARY not in finding.text


def test_a_broken_wandb_is_a_warning_unless_it_is_to_be_used(machine: Machine) -> None:
    machine.unimportable("wandb")
    topic, finding = machine.only_problem()
    assert (topic, finding.level) == ("wandb", Level.WARN)
    assert finding.advice == 'pip install --force-reinstall "wandb>=0.19"'
    assert machine.only_problem("log.wandb=online")[1].level is Level.FIX
