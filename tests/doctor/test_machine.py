"""Memory, disks, Slurm, codecs and sources: one broken thing at a time."""

import base64
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from healthy_machine import Machine

from cosmos_hydra.doctor import machine as machine_checks
from cosmos_hydra.doctor import videos
from cosmos_hydra.doctor.findings import Level, fix, ok, warn

REPLACE_DECORD = 'pip uninstall -y decord && pip install --force-reinstall "decord2>=3.0"'


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize("key", ["paths.runs", "paths.samples", "data.path"])
def test_a_folder_that_cannot_be_made_is_named_by_its_key(machine: Machine, key: str) -> None:
    (machine.folder / "file").write_text("")
    below = machine.folder / "file/below"
    values = [f"{key}={below}"] + ["data.path=samples"] * (key == "paths.samples")
    finding = fix(f"{below} cannot be written to", f"{key}=FOLDER where you can write")
    assert machine.only_problem(*values) == (key, finding)


def test_looking_at_a_folder_leaves_nothing_there(machine: Machine) -> None:
    before = sorted(machine.folder.rglob("*"))
    machine.findings()
    assert sorted(machine.folder.rglob("*")) == before


def test_a_hub_cache_that_cannot_be_written_is_a_warning(machine: Machine) -> None:
    machine.patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/proc/none")
    advice = "export HF_HOME=FOLDER where you can write"
    finding = warn("/proc/none cannot be written to", advice)
    assert machine.only_problem() == ("HF cache", finding)


def test_a_full_disk_is_a_warning_for_every_folder_on_it(machine: Machine) -> None:
    machine.patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0.25e9))
    found = machine.findings()
    full = {topic: each.text for topic, each in found.items() if each.level is Level.WARN}
    assert full.keys() == {"paths.runs", "paths.samples", "data.path", "HF cache"}
    assert full["paths.runs"] == "only 0.2 GB free in runs"
    assert found["paths.runs"].advice == "paths.runs=FOLDER on a disk with more room"


def test_a_disk_too_small_for_checkpoints_is_to_be_fixed(machine: Machine) -> None:
    machine.patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100e9))
    (machine.folder / "meminfo").write_text("MemAvailable: 200000000 kB\n")
    machine.patch.setenv("HF_TOKEN", "hf_canary")
    machine.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    paths = [f"model.{name}.path=here" for name in ("weights", "tokenizer", "text_encoder")]
    topic, finding = machine.only_problem(*paths, model="7b")
    assert (topic, finding.level) == ("paths.runs", Level.FIX)
    assert finding.text == "100.0 GB free in runs, but two checkpoints need 171.9"


def test_the_limit_of_a_container_counts_as_memory(machine: Machine) -> None:
    assert machine.findings()["memory"] == ok("24.6 GB available")
    (machine.folder / "limit").write_text("max\n")
    assert machine.findings()["memory"] == ok("24.6 GB available")
    (machine.folder / "limit").write_text("1000000000\n")
    text = "1.0 GB available; weights of model=tiny take 0.0 and the program 2"
    finding = warn(text, "model=tiny, or a machine with more memory")
    assert machine.only_problem() == ("memory", finding)


@pytest.mark.parametrize(("model", "billion"), [("7b", 7.24), ("14b", 14.27)])
def test_parameters_are_estimated_to_two_percent(
    machine: Machine, model: str, billion: float
) -> None:
    config = machine.config(model=model)
    assert machine_checks.num_parameters(config.model) == pytest.approx(1e9 * billion, rel=0.02)


def test_slurm_is_found_with_its_partitions(machine: Machine) -> None:
    machine.program("sbatch", "")
    machine.program("sinfo", 'test "$1 $2" = "--noheader --format=%R %D" && echo "a100 4"')
    assert machine.findings()["slurm"] == ok("sinfo answers: a100 (4 nodes)")


def test_a_slurm_that_fails_is_a_warning_with_its_own_words(machine: Machine) -> None:
    machine.program("sbatch", "")
    machine.program(
        "sinfo", "echo 'slurm_load_partitions: Unable to contact controller' >&2; exit 1"
    )
    text = "sbatch is here, but sinfo fails (slurm_load_partitions: Unable to contact controller)"
    assert machine.only_problem() == ("slurm", warn(text, "sinfo"))


def test_a_slurm_that_hangs_is_given_up_on(machine: Machine) -> None:
    machine.program("sbatch", "")
    machine.program("sinfo", "exec /bin/sleep 30")
    machine.patch.setattr(machine_checks, "SINFO_TIMEOUT_S", 0.2)
    topic, finding = machine.only_problem()
    assert (topic, finding.level) == ("slurm", Level.WARN)
    assert "timed out after 0.2 seconds" in finding.text


def test_a_decord_that_does_not_import_is_named(machine: Machine) -> None:
    machine.unimportable("decord")
    machine.patch.delitem(sys.modules, "cosmos_hydra.data.decoder", raising=False)
    topic, finding = machine.only_problem()
    assert topic == "decord"
    assert "does not import (import of decord halted" in finding.text
    assert finding.advice == REPLACE_DECORD


def test_an_av_that_does_not_import_is_named(machine: Machine) -> None:
    machine.unimportable("av")
    topic, finding = machine.only_problem()
    assert topic == "decord"
    assert finding.text.startswith("av ")
    assert finding.advice == 'pip install --force-reinstall "av>=14.2"'


def test_a_decord_without_a_codec_is_named_with_it(machine: Machine) -> None:
    unknown = base64.b64decode(videos.AV1_IVF).replace(b"AV01", b"AV99")
    machine.patch.setattr(videos, "AV1_IVF", base64.b64encode(unknown))
    topic, finding = machine.only_problem()
    assert (topic, finding.level, finding.advice) == ("decord", Level.FIX, REPLACE_DECORD)
    assert "does not decode AV1 (" in finding.text


def test_a_decord_that_decodes_wrongly_is_named(machine: Machine) -> None:
    machine.patch.setattr(videos, "LEVELS", (60, 140))  # AV1 still shows 60 and 180
    topic, finding = machine.only_problem()
    assert topic == "decord"
    assert finding.text.endswith("does not decode AV1 (frames come out wrong)")


def test_a_source_is_counted_or_found_wanting(machine: Machine) -> None:
    advice = "data.source=FOLDER with the folder of your videos"
    unset = machine.only_problem("data.kind=folder", "data.source=null")
    assert unset == ("data.source", fix("not set", advice))
    values = ("data.kind=folder", "data.source=videos")
    assert machine.only_problem(*values) == ("data.source", fix("videos is no folder", advice))
    folder = machine.folder / "videos/deep"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("")
    text = "videos holds no videos; looked for .avi .m4v .mkv .mov .mp4 .webm"
    assert machine.only_problem(*values) == ("data.source", fix(text, advice))
    for name in ("one.mp4", "two.MKV", "._one.mp4"):
        (folder / name).write_text("")
    assert machine.findings(*values)["data.source"] == ok("videos, 2 videos")
    machine.patch.setattr(videos, "ENOUGH", 1)
    assert machine.findings(*values)["data.source"] == ok("videos, at least 1 videos")
