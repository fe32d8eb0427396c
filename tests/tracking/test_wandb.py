"""The real Weights & Biases client, offline: what it writes, must not know, and its failures."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SMALL, Command
from small_runs import SAMPLES, rows_of, small_config, train

from cosmos_hydra import runs

CANARIES = {
    "WANDB_API_KEY": "c0ffee" * 6 + "cafe",  # forty characters, as real ones
    "HF_TOKEN": "hf_canary_of_the_hub",
    "NCCL_SOCKET_IFNAME": "canary_of_the_command_line",
}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "wandb-home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture(scope="module", autouse=True)
def _no_service_left() -> Iterator[None]:
    yield
    import wandb

    wandb.teardown()


def test_offline_runs_keep_their_id_and_never_see_secrets(
    command: Command, small_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARIES["WANDB_API_KEY"])
    monkeypatch.setenv("HF_TOKEN", CANARIES["HF_TOKEN"])
    typed = ["stage=post_train", *SMALL, f"data.path={small_samples / SAMPLES}", "name=one"]
    typed += ["log.wandb=offline", "trainer.preview_every=2"]
    typed += [f"+hydra.job.env_set.NCCL_SOCKET_IFNAME={CANARIES['NCCL_SOCKET_IFNAME']}"]
    run = tmp_path / "runs" / "one"
    names = []
    for max_steps in (2, 4):
        outcome = command(*typed, f"trainer.max_steps={max_steps}", cwd=tmp_path)
        assert outcome.code == 0
        assert "log.wandb" not in outcome.stdout
        names.append((run / "wandb_id.txt").read_text())
    assert names[0] == names[1]
    folders = list((run / "wandb").glob("offline-run-*"))
    assert {folder.name.rpartition("-")[2] for folder in folders} == {names[0]}
    assert list(run.rglob("preview_4_*.png"))
    contents = {path: path.read_bytes() for path in (run / "wandb").rglob("*") if path.is_file()}
    records = b"".join(content for path, content in contents.items() if path.suffix == ".wandb")
    # a search of bytes finds what is there
    for known in (b"val_loss", b"gaussian_loss", b"grad_norm", b"tiny", b"chunks_per_video"):
        assert known in records
    for name, canary in CANARIES.items():
        found = [path for path, content in contents.items() if canary.encode() in content]
        assert found == [], name


def train_with_wandb(small_samples: Path, run: Path, *overrides: str) -> None:
    config = small_config(small_samples, "log.wandb=offline", "trainer.save_every=0", *overrides)
    train(config, run)
    assert runs.steps(run) == [4]
    assert [row["step"] for row in rows_of(run) if "loss" in row] == [1, 2, 3, 4]


def test_training_goes_on_without_the_package(
    small_samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    train_with_wandb(small_samples, tmp_path)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("log.wandb: ModuleNotFoundError: ")
    assert warning.endswith("; going on without it")


def test_training_goes_on_when_the_client_cannot_start(
    small_samples: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_with_wandb(small_samples, tmp_path, "log.wandb_project=a/b")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("log.wandb: UsageError: Invalid project name 'a/b'")
    assert warning.endswith("; going on without it")
    assert "\n" not in warning


def test_training_goes_on_when_the_client_fails_later(
    small_samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from wandb import Run

    log, calls = Run.log, []

    def fail_at_the_second(self: Run, *arguments: object, **options: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise BrokenPipeError("the service\nis gone")
        log(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "log", fail_at_the_second)
    train_with_wandb(small_samples, tmp_path)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == "log.wandb: BrokenPipeError: the service is gone; going on without it"
    assert len(calls) == 2


def test_nothing_of_it_is_there_when_it_is_off(small_samples: Path, tmp_path: Path) -> None:
    train(small_config(small_samples, "trainer.max_steps=1"), tmp_path)
    assert not list(tmp_path.glob("wandb*"))
