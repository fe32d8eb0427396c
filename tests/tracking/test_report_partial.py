"""Reports of runs that are not whole, old, very long, or did not learn: never an error."""

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pages import ParsedPage, parse
from small_runs import SAMPLES, small_config, train

from cosmos_hydra.data.clips import TRAIN
from cosmos_hydra.data.store import open_store
from cosmos_hydra.tracking import report_html
from cosmos_hydra.tracking.report import write_report

GAUSSIAN, LINEAR = 0.5, 0.9


def report_of(run: Path, samples: Path = Path("/nowhere"), *overrides: str) -> ParsedPage:
    """Return the report of a run directory whose config is that of small runs."""
    run.mkdir(parents=True, exist_ok=True)
    return parse(write_report(run, small_config(samples, *overrides)))


def write_rows(run: Path, *rows: dict[str, Any], name: str = "metrics.jsonl") -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def training(step: int, **others: Any) -> dict[str, Any]:
    times = {"step_s": 2.0, "data_wait_s": 0.5, "tokens_per_s": 100.0}
    return {"step": step, "loss": 1.0, "lr": 0.1, "grad_norm": 2.0, **times, **others}


def validation(step: int, loss: float | None) -> dict[str, Any]:
    baselines = {"gaussian_loss": GAUSSIAN, "linear_loss": LINEAR}
    return {"step": step, "val_loss": loss, **baselines}


def test_a_folder_without_a_run_says_so_and_shows_config_and_data(
    small_samples: Path, tmp_path: Path
) -> None:
    page = report_of(tmp_path / "new", small_samples)
    assert set(page.sections) == {"header", "data", "config"}
    assert "Not trained yet" in page.sections["header"]
    assert "10 clips to train on and 2 held out" in page.sections["data"]
    assert "different captions" in page.sections["data"]
    assert "Found 6 videos = kept 6 + skipped 0 + failed 0." in page.sections["data"]
    assert "trainer.max_steps=4" in page.sections["config"]


def test_nothing_at_all_is_a_page_too(tmp_path: Path) -> None:
    page = report_of(tmp_path / "new")
    assert set(page.sections) == {"header", "data", "config"}
    assert "No validation so far" in page.sections["header"]


def test_a_run_of_before_run_json_takes_its_config_from_the_checkpoint(
    small_samples: Path, tmp_path: Path
) -> None:
    run = tmp_path / "one"
    train(small_config(small_samples, "trainer.max_steps=2", "optim.lr=0.03"), run)
    for name in ("run.json", "losses.jsonl"):
        (run / name).unlink(missing_ok=True)
    old = ("mem_gb", "validation_s", "preview_s", "checkpoint_s")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_rows(run, *({k: v for k, v in row.items() if k not in old} for row in rows))
    page = report_of(run)
    assert "Finished at step 2 of 2" in page.sections["header"]
    assert "Peak memory" not in page.sections["header"]
    assert "Devicecpu" in page.sections["header"]
    assert "optim.lr=0.03" in page.sections["config"]
    assert "Differs" not in page.sections["config"]
    assert "hardest-clips" not in page.sections
    assert [row[0].strip() for row in page.rows["time"][1:]] == ["data wait", "step compute"]
    assert "10 clips to train on" in page.sections["data"]


def test_samples_that_have_changed_since_are_not_shown(small_samples: Path, tmp_path: Path) -> None:
    samples = tmp_path / SAMPLES
    shutil.copytree(small_samples / SAMPLES, samples)
    run = tmp_path / "one"
    write_rows(run, training(1))
    described = {"config": None, "data": {"content_hash": "other", "train": 7, "held_out": 1}}
    (run / "run.json").write_text(json.dumps(described))
    page = report_of(run, tmp_path)
    assert "7 clips to train on and 1 held out" in page.sections["data"]
    assert "captions" not in page.sections["data"]


def test_one_step_without_validation_or_previews_is_enough(tmp_path: Path) -> None:
    write_rows(tmp_path, training(1, mem_gb=1.5))
    page = report_of(tmp_path)
    assert "Stopped at step 1 of 4" in page.sections["header"]
    assert "Peak memory1.50 GB" in page.sections["header"]
    assert list(page.plots()) == [
        "Training loss",
        "Gradient norm",
        "Seconds a step",
        "Learning rate",
    ]
    assert page.rows["time"][1:] == [
        ["\ndata wait", "0.5", "25.0%"],
        ["\nstep compute", "1.5", "75.0%"],
    ]
    assert "before-and-after" not in page.sections


def test_a_run_that_another_process_holds_is_running(tmp_path: Path) -> None:
    write_rows(tmp_path, training(1))
    lock = tmp_path / ".lock"
    with lock.open("w") as file:
        assert "Stopped at step 1" in report_of(tmp_path).sections["header"]
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "Running, at step 1 of 4" in report_of(tmp_path).sections["header"]
    assert "Stopped at step 1" in report_of(tmp_path).sections["header"]


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [
        (0.25, "is 0.250 at step 2, 50% of what a Gaussian denoiser reaches (0.500)"),
        (0.7, "over the 0.500 of a Gaussian denoiser and under the 0.900 of a linear one"),
        (0.95, "over the 0.500 of a Gaussian denoiser and the 0.900 of a linear one"),
        (None, "The validation loss at step 2 is no finite number: training has diverged."),
    ],
)
def test_the_verdict_compares_with_both_baselines(
    tmp_path: Path, loss: float | None, verdict: str
) -> None:
    write_rows(tmp_path, validation(0, 1.0), training(1), training(2), validation(2, loss))
    page = report_of(tmp_path)
    assert verdict in page.sections["header"]
    assert "Validation loss" in page.plots()


def test_skipped_steps_are_counted_marked_and_blamed_on_clips(
    small_samples: Path, tmp_path: Path
) -> None:
    worst, *others = open_store(str(small_samples / SAMPLES)).splits[TRAIN]
    bad = {"loss": None, "grad_norm": None, "skipped": True}
    write_rows(tmp_path, training(1), training(2, **bad), training(3, **bad), training(4))
    losses = [
        {"step": step, "sample": sample, "sigma": 1.0, "loss": loss}
        for step, sample, loss in (
            *((2, worst, None), (2, others[0], 1.0)),
            *((3, worst, None), (4, others[1], 1.0)),
        )
    ]
    write_rows(tmp_path, *losses, name="losses.jsonl")
    page = report_of(tmp_path, small_samples)
    assert "Skipped steps2" in page.sections["header"]
    assert "no finite number did not change the weights" in page.sections["hardest-clips"]
    [_, row] = page.rows["hardest-clips"]
    assert row[:2] == ["2", worst]
    assert row[2].endswith(".mp4")
    plots = page.plots()
    assert ">skipped step</text>" in plots["Training loss"]
    assert ">skipped step</text>" not in plots["Learning rate"]


def test_steps_that_are_all_skipped_leave_no_curve(tmp_path: Path) -> None:
    write_rows(tmp_path, training(1, loss=None, grad_norm=None, skipped=True))
    page = report_of(tmp_path)
    assert "Skipped steps1" in page.sections["header"]
    assert list(page.plots()) == ["Seconds a step", "Learning rate"]


def test_a_hundred_thousand_steps_make_a_small_page(tmp_path: Path) -> None:
    steps = range(1, 100_001)
    rows = (
        [validation(step, 0.5)] * (step % 50 == 0) + [training(step, loss=1.0 + step % 7)]
        for step in steps
    )
    write_rows(tmp_path, *(row for group in rows for row in group))
    page = report_of(tmp_path)
    assert "at step 100,000" in page.sections["header"]
    assert "Means of up to 1,250 steps" in page.sections["learning"]
    assert ">100k</text>" in page.plots()["Training loss"]
    assert (tmp_path / "report.html").stat().st_size < 200_000


def test_what_does_not_fit_is_named_and_the_rest_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_html, "EMBEDDED_MB", 0.01)
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, size_bytes in enumerate((5000, 6000, 1000, 7000, 8000, 9000)):
        (videos / f"clip{number}.mp4").write_bytes(bytes(size_bytes))
        (videos / f"clip{number}.json").write_text(json.dumps({"prompt": "a robot", "seed": 1}))
    (videos / "cut.mp4").write_bytes(b"half")  # has no sidecar yet
    page = report_of(tmp_path)
    assert [len(content) for content in page.embedded("video/mp4")] == [5000, 1000]
    assert (
        "Left out to stay under 0.01 MB: videos/clip1.mp4, videos/clip3.mp4, videos/clip4.mp4 "
        "and 1 more (0.0 MB)."
    ) in page.sections["header"]
    assert "videos/clip1.mp4 is not embedded" in page.sections["generated-videos"]


def test_many_videos_are_counted(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(63):
        (videos / f"clip{number:02}.mp4").write_bytes(b"video")
        (videos / f"clip{number:02}.json").write_text(json.dumps({"prompt": "a robot", "seed": 1}))
    page = report_of(tmp_path)
    assert len(page.embedded("video/mp4")) == 60
    assert "3 more lie in videos/." in page.sections["generated-videos"]


def test_damaged_files_count_as_missing(tmp_path: Path) -> None:
    write_rows(tmp_path, training(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "los')
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "losses.jsonl").write_text('{"step": 2, "los')
    assert "Stopped at step 1 of 4" in report_of(tmp_path).sections["header"]
