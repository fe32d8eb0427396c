"""The summary on runs that are written by hand: many jobs, seeds, GPUs, and what is missing."""

import csv
import json
import re
from pathlib import Path

import pytest
from browser import find_chromium, start_browser
from conftest import Command
from pages import parse

from hydra_plugins.cosmos_launchers._summary import Job, summarise

HOSTILE = "<script>alert('x')</script> & \"quoted\", text"


def job_of(
    folder: Path,
    number: int,
    overrides: tuple[str, ...],
    losses: tuple[float | None, ...] = (),
    error: str | None = None,
    status: str = "failed",
    **described: object,
) -> Job:
    """Return a job whose run directory has a validation loss every 10 steps."""
    run = folder / str(number)
    run.mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for index, loss in enumerate(losses):
        step = 10 * index
        rows.append({"step": step, "val_loss": loss})
        rows += [
            {"step": step + i, "loss": (loss or 1.0) * (1 + 0.3 * ((i * 7) % 5)), "mem_gb": 61.38}
            for i in range(1, 11)
        ]
    lines = [json.dumps(row) for row in rows]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9']))
    (run / "run.json").write_text(json.dumps({"config": {"log": {"report": False}}, **described}))
    return Job(number, overrides, run, status if error else "ok", error, 2292.0 + number)


def test_jobs_on_gpus_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("sweeps/lr/2026-11-22_1928")
    gpus = {"device": {"type": "cuda"}, "ranks": 8}
    cause = "rank 5 on n2: loss is nan at step 412; " + "see " * 30
    jobs = [
        job_of(folder, 0, ("model=7b", "optim.lr=1e-05"), (0.9, 0.1611), **gpus),
        job_of(folder, 1, ("model=7b", "optim.lr=3e-05"), (0.9, 0.1423), **gpus),
        job_of(folder, 2, ("model=7b", "optim.lr=1e-04"), (0.9, 0.1487), **gpus),
        job_of(folder, 3, ("model=7b", "optim.lr=1e-03"), (0.9, None), cause, **gpus),
        job_of(folder, 4, ("model=7b", "optim.lr=1e-02"), (), "no result", "lost"),
    ]
    assert summarise(folder, jobs, wall_s=9000.0) == 1
    place = "sweeps/lr/2026-11-22_1928"
    counts = "5 jobs, 3 ok, 1 failed, 1 lost, 2:30:00 wall, 20.4 GPU-h"
    shown = f"failed: {cause}"[:117] + "..."
    assert capsys.readouterr().out.splitlines() == [
        f"sweep lr/2026-11-22_1928  {counts}      metric: val_loss, lower is better",
        "  #  optim.lr  val_loss  step   time  peak GB  run",
        f"  1     3e-05    0.1423    20  38:13     61.4  {place}/1  <- best",
        f"  2     1e-04    0.1487    20  38:14     61.4  {place}/2",
        f"  0     1e-05    0.1611    20  38:12     61.4  {place}/0",
        f"  3     1e-03         -    20  38:15     61.4  {shown}",
        "  4     1e-02         -     -  38:16        -  lost: no result",
        f"use it: cosmos-hydra stage=generate checkpoint={place}/1",
        f"go on: the same command with hydra.sweep.dir={place}",
    ]
    with (folder / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["number"] for line in lines] == ["1", "2", "0", "3", "4"]
    assert lines[3]["error"] == cause
    assert lines[0]["time_s"] == "2293.0"
    assert {line["model"] for line in lines} == {"7b"}


def test_swept_seeds_make_a_second_table_of_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {("1e-3", 0): 0.3, ("1e-3", 1): 0.1, ("1e-4", 0): 0.16, ("1e-4", 1): 0.18}
    jobs = [
        job_of(tmp_path, number, (f"optim.lr={lr}", f"seed={seed}"), (loss,))
        for number, ((lr, seed), loss) in enumerate(losses.items())
    ]
    assert summarise(tmp_path, jobs) == 0
    text = capsys.readouterr().out
    assert text.partition("over seeds:\n")[2].splitlines()[:3] == [
        "  optim.lr  mean val_loss     std  seeds",
        "      1e-4         0.1700  0.0141      2",
        "      1e-3         0.2000  0.1414      2",
    ]


def test_a_sweep_whose_configs_alone_are_wrong_has_exit_code_2(tmp_path: Path) -> None:
    wrong = Job(0, ("a=1",), tmp_path / "0", "failed", "a=1 is wrong", 0.1, exit_code=2)
    lost = Job(1, ("a=2",), tmp_path / "1", "lost", "gone", 0.1)
    assert summarise(tmp_path, [wrong]) == 2
    assert summarise(tmp_path, [wrong, lost]) == 1


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a sweep of 20 jobs with hostile text, two of them failed."""
    folder = tmp_path_factory.mktemp("runs") / "sweeps" / "tiny <b>" / "2026-11-22_1928"
    jobs = [
        job_of(
            folder,
            number,
            (f"optim.lr={10 ** (-5 + number / 6)}", f"data.prompt={HOSTILE}{number % 2}"),
            tuple(1 / (1 + i * 0.1 * (1 + number % 7)) for i in range(30)),
            error=HOSTILE if number > 17 else None,
        )
        for number in range(20)
    ]
    summarise(folder, jobs)
    (folder / "0" / "report.html").touch()
    return folder


@pytest.fixture
def made(command: Command, page: Path, tmp_path: Path) -> Path:
    """Return sweep.html, as the stage `report` makes it."""
    done = command("stage=report", f"checkpoint={page}", cwd=tmp_path)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == f"report: {page / 'sweep.html'}\n"
    assert list(tmp_path.iterdir()) == []
    return page / "sweep.html"


def test_the_page_shows_every_job_and_runs_nothing(made: Path) -> None:
    found = parse(made)
    rows = found.rows["jobs"]
    assert len(rows) == 21
    assert rows[-1][-1] == f"failed: {HOSTILE}"
    assert rows[1][2] == f"{HOSTILE}{int(rows[1][0]) % 2}"
    assert not [tag for tag, _ in found.attributes if tag == "script"]
    links = [found["href"] for tag, found in found.attributes if tag == "a"]
    assert "0/report.html" in links
    colours = re.findall(r"swatch\" style=\"background: (#\w+)", made.read_text())
    assert len(set(colours)) == 20
    for plot in found.plots().values():
        assert all(f"stroke: {colour}" in plot for colour in colours)


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 400])
def test_the_page_fits_a_desktop_and_a_phone(made: Path, tmp_path: Path, width: int) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium")
    with start_browser(program, tmp_path / "profile") as browser:
        opened = browser.open(made, width)
    assert opened.messages == []
    assert {address.partition(":")[0] for address in opened.addresses} <= {"file", "data"}
    assert opened.facts["scroll_width"] == opened.facts["width"]
    assert opened.facts["too_wide"] == []
    assert opened.facts["broken_pictures"] == 0
    (made.parent / f"{width}.png").write_bytes(opened.png)


@pytest.mark.parametrize("content", ["", "number\n", "a,b\nc\n", "\x00\n,,,\n"])
def test_a_damaged_file_is_one_line(command: Command, tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.csv").write_text(content)
    refused = command("stage=report", f"checkpoint={tmp_path}", cwd=tmp_path)
    message = "cosmos-hydra: sweep.csv is damaged; run the sweep again\n"
    assert (refused.code, refused.stderr) == (1, message)
