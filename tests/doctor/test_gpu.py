"""The GPU: whatever keeps torch from using it is named, with what to type."""

from pathlib import Path

import pytest
import torch
from healthy_machine import Machine

from cosmos_hydra.doctor import gpu
from cosmos_hydra.doctor.findings import Level, fix, ok, warn

NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12020)."
NONE_VISIBLE = "No CUDA GPUs are available"
INSTALL = "install the driver (https://www.nvidia.com/drivers), in a container: --gpus all"


def other_build(build: str) -> str:
    command = 'pip uninstall -y torch && pip install "torch>=2.10,<2.14"'
    return f"{command} --index-url https://download.pytorch.org/whl/{build}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("driver", "before", "build"),
    [
        ("580.65.06", "", "cu130"),
        ("535.183.01", "", "cu128"),
        ("470.57", "update the NVIDIA driver to 580 or newer, then: ", "cu130"),
    ],
)
def test_a_cpu_build_beside_a_gpu_is_replaced_by_one_for_its_driver(
    machine: Machine, driver: str, before: str, build: str
) -> None:
    machine.nvidia_driver(driver, "NVIDIA L4", "NVIDIA L4")
    text = "2 x NVIDIA L4 is not used, since torch 2.11.0+cpu is built for the CPU"
    assert machine.only_problem() == ("gpu", fix(text, before + other_build(build)))


def test_a_cpu_build_beside_a_driver_without_nvidia_smi_is_replaced(machine: Machine) -> None:
    (machine.folder / "no driver/0000:01:00.0").mkdir(parents=True)
    text = "an NVIDIA GPU is not used, since torch 2.11.0+cpu is built for the CPU"
    assert machine.only_problem() == ("gpu", fix(text, other_build("cu130")))


def test_an_nvidia_smi_that_fails_is_no_gpu(machine: Machine) -> None:
    machine.program("nvidia-smi", "echo 'No driver answers, is one running?'; exit 9")
    assert machine.findings()["gpu"] == ok("none, runs use the CPU")


@pytest.mark.parametrize(
    ("driver", "instead"), [("535.183.01", f", or: {other_build('cu128')}"), ("470.57", "")]
)
def test_a_driver_too_old_for_the_build_is_named_with_every_way_out(
    machine: Machine, driver: str, instead: str
) -> None:
    machine.cuda_build(TOO_OLD)
    machine.nvidia_driver(driver, "NVIDIA L4")
    text = f"driver {driver} is too old for torch 2.11.0+cu130, built for CUDA 13.0"
    advice = f"update the NVIDIA driver to 580 or newer{instead}"
    assert machine.only_problem() == ("gpu", fix(text, advice))


def test_a_card_without_a_driver_is_found_on_the_bus(machine: Machine) -> None:
    machine.cuda_build(NO_DRIVER)
    machine.plug_in("0x10de", "0x030200")
    text = "this machine has an NVIDIA GPU, but its driver is missing here"
    assert machine.only_problem() == ("gpu", fix(text, INSTALL))


def test_a_cuda_build_on_a_machine_without_any_gpu_is_in_order(machine: Machine) -> None:
    machine.cuda_build(NO_DRIVER)
    machine.plug_in("0x10de", "0x040300")  # the sound of a card
    text = "none, runs use the CPU: neither an NVIDIA GPU nor a driver"
    assert machine.findings()["gpu"] == ok(text)


def test_where_the_bus_cannot_be_seen_a_missing_driver_is_a_warning(machine: Machine) -> None:
    machine.cuda_build(NO_DRIVER)
    machine.patch.setattr(gpu, "PCI_FOLDER", machine.folder / "no bus")
    finding = warn("no NVIDIA driver found, so there is no GPU", INSTALL)
    assert machine.only_problem() == ("gpu", finding)


@pytest.mark.parametrize(
    ("value", "what"), [("", "is empty"), ("7", "names no GPU of this machine")]
)
def test_gpus_hidden_by_the_environment_are_named(machine: Machine, value: str, what: str) -> None:
    machine.cuda_build(NONE_VISIBLE)
    machine.nvidia_driver("580.65.06", "NVIDIA L4")
    machine.patch.setenv("CUDA_VISIBLE_DEVICES", value)
    text, advice = f"CUDA_VISIBLE_DEVICES {what}, so torch sees none", "unset CUDA_VISIBLE_DEVICES"
    assert machine.only_problem() == ("gpu", warn(text, advice))
    assert machine.only_problem("engine.device=cuda") == ("gpu", fix(text, advice))
    assert machine.findings("engine.device=cpu")["gpu"] == ok("not used, engine.device=cpu")


def test_a_gpu_that_torch_does_not_see_for_another_reason_keeps_torchs_words(
    machine: Machine,
) -> None:
    machine.cuda_build("CUDA unknown error")
    topic, finding = machine.only_problem()
    assert (topic, finding.level) == ("gpu", Level.WARN)
    assert finding.text == "torch sees none (CUDA unknown error)"
    assert finding.advice == "nvidia-smi (on Slurm ask for one: srun --gpus=1)"


def test_a_config_that_insists_on_a_gpu_where_there_is_none_is_to_be_fixed(
    machine: Machine,
) -> None:
    finding = fix("engine.device=cuda:1 but there is none", "engine.device=auto")
    assert machine.only_problem("engine.device=cuda:1") == ("gpu", finding)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_that_computes_is_shown_with_its_memory(machine: Machine) -> None:
    count, name = torch.cuda.device_count(), torch.cuda.get_device_name(0)
    machine.patch.undo()
    finding = gpu.gpu(machine.config())
    assert finding.level is Level.OK
    assert name in finding.text
    assert finding.text.count(" GB free") == 1
    finding = fix(f"engine.device=cuda:99 but the last is cuda:{count - 1}", "engine.device=auto")
    assert gpu.gpu(machine.config("engine.device=cuda:99")) == finding
