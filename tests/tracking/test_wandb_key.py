"""wandb online: where a key is looked for, and a server that is away, refuses or goes away.

The server is a thread of ours; nothing leaves the machine.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import SMALL, Command
from small_runs import SAMPLES, assert_same_tensors, small_config, state_of, train

from cosmos_hydra.engines.torch import step as step_module
from cosmos_hydra.tracking import wandb as tracking

KEY = "c0ffee" * 6 + "cafe"  # forty characters, as real ones
NOWHERE = "http://127.0.0.1:9"  # the port `discard`, on which nothing listens
REFUSED = (
    "cosmos-hydra: log.wandb=online but there is no key for {host}; run: wandb login, or set "
    "WANDB_API_KEY, or log.wandb=offline\n"
)
PUBLIC = "api.wandb.ai"
OFFLINE = "; going on offline, `wandb sync` uploads it later"
START_TIMEOUT_S = 1.0
QUICK = ("trainer.max_steps=2", "trainer.validate_every=0", "trainer.save_every=0")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "wandb-home"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)


@pytest.fixture(autouse=True)
def _no_service_left() -> Iterator[None]:
    yield
    import wandb

    wandb.teardown()


def online(command: Command, cwd: Path, *typed: str) -> tuple[int, str]:
    """Return exit code and stderr of training online on samples that are not there."""
    outcome = command("stage=post_train", "log.wandb=online", *typed, cwd=cwd)
    return outcome.code, outcome.stderr


@pytest.mark.parametrize("stage", ["post_train", "pipeline"])
def test_no_key_is_refused_before_anything_is_made(
    command: Command, tmp_path: Path, stage: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    refused = command(f"stage={stage}", "log.wandb=online", *SMALL, cwd=work)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == REFUSED.format(host=PUBLIC)
    assert list(work.iterdir()) == []


def test_stages_that_track_nothing_need_no_key(command: Command, tmp_path: Path) -> None:
    for stage in ("preprocess", "generate"):
        outcome = command(
            f"stage={stage}", "log.wandb=online", "data=folder", "data.source=none", cwd=tmp_path
        )
        assert outcome.code != 0
        assert "wandb" not in outcome.stderr


@pytest.mark.parametrize("mode", ["off", "offline"])
def test_without_a_connection_no_key_is_needed(command: Command, tmp_path: Path, mode: str) -> None:
    code, stderr = online(command, tmp_path, f"log.wandb={mode}")
    assert code == 1
    assert "holds no samples" in stderr


def write_netrc(path: Path, host: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    path.chmod(0o600)


@pytest.mark.parametrize("place", ["environment", "token file", "netrc", "home"])
def test_a_key_is_found_wherever_wandb_looks(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    elif place == "token file":
        monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    elif place == "netrc":
        write_netrc(tmp_path / "elsewhere", PUBLIC)
        monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
    else:
        write_netrc(tmp_path / "home/.netrc", PUBLIC)
    code, stderr = online(command, tmp_path)
    assert code == 1
    assert "holds no samples" in stderr


def test_the_key_of_another_server_is_none(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_netrc(tmp_path / "home/.netrc", PUBLIC)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab.example:8443/")
    assert online(command, tmp_path) == (2, REFUSED.format(host="wandb.lab.example:8443"))
    write_netrc(tmp_path / "home/.netrc", "wandb.lab.example:8443")
    assert online(command, tmp_path)[0] == 1
    # a server that `wandb login --host` stored counts like one of the environment
    monkeypatch.delenv("WANDB_BASE_URL")
    assert online(command, tmp_path) == (2, REFUSED.format(host=PUBLIC))
    (tmp_path / "wandb-home").mkdir(exist_ok=True)
    (tmp_path / "wandb-home/settings").write_text(
        "[default]\nbase_url = https://wandb.lab.example:8443\n"
    )
    assert online(command, tmp_path)[0] == 1


@pytest.mark.parametrize("content", ["", "machine", "machine api.wandb.ai login"])
def test_a_netrc_file_that_says_nothing_is_no_key(
    command: Command, tmp_path: Path, content: str
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.netrc").write_text(content)
    assert online(command, tmp_path) == (2, REFUSED.format(host=PUBLIC))


class Server(BaseHTTPRequestHandler):
    """As much of the server as a run needs; answers 401 where `is_closed` is set."""

    is_closed = False

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = json.loads(body).get("query", "") if self.path == "/graphql" else ""
        owner = {"id": "e", "name": "me"}
        project = {"id": "p", "name": "p", "entity": owner}
        data = {}
        if "RunResumeStatus" in query:
            data = {"model": {**project, "bucket": None}}
        elif "UpsertBucket" in query:
            bucket = {"id": "b", "name": "n", "displayName": "n", "historyLineCount": 0}
            data = {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
        elif "CreateRunFiles" in query:
            data = {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        content = json.dumps({"data": data}).encode()
        self.send_response(401 if self.is_closed else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """Run a server that takes everything, and have wandb talk to it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def untracked(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run without wandb."""
    run = tmp_path_factory.mktemp("untracked")
    train(small_config(small_samples, *QUICK), run)
    return run


def at_second_step(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Have something happen in the middle of training."""
    rate, steps = step_module.learning_rate, []

    def called(optim: object, step: int, max_steps: int) -> float:
        if step == 1:
            steps.append(step)
            action()
        return rate(optim, step, max_steps)  # type: ignore[arg-type]

    monkeypatch.setattr(step_module, "learning_rate", called)


def warnings_of(
    small_samples: Path, run: Path, untracked: Path, caplog: pytest.LogCaptureFixture
) -> list[str]:
    """Train online, check that the weights are those of a run without wandb; return warnings."""
    train(small_config(small_samples, *QUICK, "log.wandb=online"), run)
    assert_same_tensors(state_of(run, 2), state_of(untracked, 2))
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_server_that_is_there_gets_the_run_without_a_word(
    small_samples: Path,
    tmp_path: Path,
    untracked: Path,
    server: ThreadingHTTPServer,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    capfd.readouterr()
    assert warnings_of(small_samples, tmp_path / "run", untracked, caplog) == []
    assert capfd.readouterr().err == ""
    assert len(list((tmp_path / "run/wandb").glob("run-*"))) == 1


def test_a_server_out_of_reach_is_one_warning_and_the_run_goes_on_offline(
    command: Command,
    small_samples: Path,
    tmp_path: Path,
    untracked: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "START_TIMEOUT_S", START_TIMEOUT_S)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    typed = ("stage=post_train", *SMALL, *QUICK, f"data.path={small_samples / SAMPLES}", "name=one")
    outcome = command(*typed, "log.wandb=online", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    [warning] = [line for line in outcome.stdout.splitlines() if line.startswith("warning: ")]
    assert warning.startswith("warning: log.wandb: CommError: ")
    assert "connection refused" in warning
    assert warning.endswith(OFFLINE)
    run = tmp_path / "runs/one"
    assert_same_tensors(state_of(run, 2), state_of(untracked, 2))
    # what there is to synchronise later
    [folder] = (run / "wandb").glob("offline-run-*")
    [record] = folder.glob("*.wandb")
    assert b"grad_norm" in record.read_bytes()


def test_a_server_that_refuses_the_key_is_one_warning(
    small_samples: Path,
    tmp_path: Path,
    untracked: Path,
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Server, "is_closed", True)
    monkeypatch.setattr(tracking, "START_TIMEOUT_S", START_TIMEOUT_S)
    [warning] = warnings_of(small_samples, tmp_path, untracked, caplog)
    assert warning.startswith("log.wandb: ")
    assert "401" in warning
    assert warning.endswith(OFFLINE)
    assert KEY not in warning


def test_a_server_that_goes_away_does_not_hold_up_the_end(
    small_samples: Path,
    tmp_path: Path,
    untracked: Path,
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 1.0)

    def leave() -> None:
        server.shutdown()
        server.socket.close()

    at_second_step(monkeypatch, leave)
    began_s = time.monotonic()
    [warning] = warnings_of(small_samples, tmp_path, untracked, caplog)
    assert time.monotonic() - began_s < 30
    assert warning.startswith("log.wandb: TimeoutError: ")
    assert warning.endswith("; going on without it")


def test_a_service_that_is_killed_is_one_warning(
    small_samples: Path,
    tmp_path: Path,
    untracked: Path,
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    killed = []

    def kill() -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            status = (folder / "stat").read_text().rpartition(") ")[2].split()
            if int(status[1]) == os.getpid() and b"wandb-core" in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
                killed.append(folder.name)

    at_second_step(monkeypatch, kill)
    [warning] = warnings_of(small_samples, tmp_path, untracked, caplog)
    assert len(killed) == 1
    assert warning.startswith("log.wandb: ConnectionResetError: ")
    assert warning.endswith("; going on without it")
