"""Python and its packages: one broken thing at a time, named with the command that mends it."""

import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from healthy_machine import Machine

from cosmos_hydra.doctor.findings import Level, fix

NEED_TORCH = {"gpu", "decord", "diffusers", "transformers", "data.source"}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_healthy_machine_is_all_in_order(machine: Machine) -> None:
    found = machine.findings()
    assert {each.level for each in found.values()} == {Level.OK}
    assert found["torch"].text == "2.11.0+cpu, built for the CPU"
    version = metadata.version("hydra-core")
    assert found["packages"].text.startswith(f"hydra-core {version}, omegaconf ")


def test_an_old_python_is_named(machine: Machine) -> None:
    machine.patch.setattr("platform.python_version", lambda: "3.9.18")
    topic, finding = machine.only_problem()
    assert (topic, finding.text) == ("python", "3.9.18 is not >=3.10")
    assert finding.advice.startswith("install a newer Python")


def test_an_old_torch_keeps_its_build_and_stops_what_needs_it(machine: Machine) -> None:
    healthy = machine.findings()
    machine.installed(torch="2.9.1+cpu")
    assert machine.only_problem() == (
        "torch",
        fix(
            "torch 2.9.1+cpu is not >=2.10,<2.14",
            'pip install "torch>=2.10,<2.14" --index-url https://download.pytorch.org/whl/cpu',
        ),
    )
    assert healthy.keys() - machine.findings().keys() == NEED_TORCH


def test_a_missing_torch_is_named(machine: Machine) -> None:
    machine.installed(torch=None)
    finding = fix("torch is not installed", 'pip install "torch>=2.10,<2.14"')
    assert machine.only_problem() == ("torch", finding)


def test_a_torch_that_does_not_import_is_named(machine: Machine) -> None:
    machine.installed(torch="2.11.0")
    machine.unimportable("torch")
    topic, finding = machine.only_problem()
    assert topic == "torch"
    assert finding.text.startswith("torch 2.11.0 does not import (import of torch halted")
    assert finding.advice == 'pip install --force-reinstall "torch>=2.10,<2.14"'


def test_wrong_and_missing_packages_share_one_command(machine: Machine) -> None:
    machine.installed(omegaconf="2.4.0", matplotlib=None)
    assert machine.only_problem() == (
        "packages",
        fix(
            "matplotlib is not installed; omegaconf 2.4.0 is not >=2.3,<2.4",
            'pip install "matplotlib>=3.8" "omegaconf>=2.3,<2.4"',
        ),
    )


def test_of_many_wrong_packages_three_are_described(machine: Machine) -> None:
    machine.installed(accelerate=None, av="13.0.0", pillow=None, tqdm=None, numpy=None)
    topic, finding = machine.only_problem()
    assert topic == "packages"
    assert finding.text == (
        "accelerate is not installed; av 13.0.0 is not >=14.2; numpy is not installed; and 2 more"
    )
    assert finding.advice.count(">=") == 5


def test_an_old_diffusers_is_named(machine: Machine) -> None:
    machine.installed(diffusers="0.38.0")
    finding = fix("diffusers 0.38.0 is not >=0.39", 'pip install "diffusers>=0.39"')
    assert machine.only_problem() == ("diffusers", finding)


def test_a_diffusers_without_the_cosmos_model_is_named(machine: Machine) -> None:
    machine.patch.setitem(sys.modules, "diffusers", ModuleType("diffusers"))
    topic, finding = machine.only_problem()
    assert topic == "diffusers"
    assert "lacks Cosmos classes (cannot import name" in finding.text
    assert finding.advice == 'pip install --force-reinstall "diffusers>=0.39"'


def test_a_broken_torchvision_is_blamed_instead_of_diffusers(machine: Machine) -> None:
    package = machine.folder / "torchvision"
    package.mkdir()
    words = "operator torchvision::nms does not exist"
    (package / "__init__.py").write_text(f"raise RuntimeError({words!r})\n")
    machine.patch.delitem(sys.modules, "torchvision", raising=False)
    machine.patch.syspath_prepend(machine.folder)
    text = f"torchvision does not import and breaks diffusers ({words})"
    finding = fix(text, "pip uninstall -y torchvision")
    assert machine.only_problem() == ("diffusers", finding)


def test_a_transformers_that_does_not_import_is_named(machine: Machine) -> None:
    machine.unimportable("transformers")
    topic, finding = machine.only_problem()
    assert topic == "transformers"
    assert "does not import (import of transformers halted" in finding.text
    assert finding.advice == 'pip install --force-reinstall "transformers>=4.57"'
