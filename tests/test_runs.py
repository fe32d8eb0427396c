"""Where a command writes, and what counts as a run, a step and a checkpoint."""

from pathlib import Path

import pytest

from cosmos_hydra import runs
from cosmos_hydra.config import ResumeMode, Stage
from cosmos_hydra.runs import run_directory


def add_step(run: Path, step: int) -> Path:
    folder = runs.step_folder(run, step)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.mark.parametrize("stage", ["preprocess", "post_train", "pipeline", "generate"])
@pytest.mark.parametrize("mode", ["auto", "never"])
def test_a_command_writes_into_the_folder_of_its_name(stage: str, mode: str) -> None:
    assert run_directory("runs", "one", stage, None, None, mode) == "runs/one"


def test_stage_and_mode_may_be_enums_or_text() -> None:
    out = run_directory("runs", "one", Stage.generate, None, "there", ResumeMode.auto)
    assert out == "there" == run_directory("runs", "one", "generate", None, "there", "auto")


def test_generate_from_a_checkpoint_writes_below_its_run(tmp_path: Path) -> None:
    run = tmp_path / "one"
    step = add_step(run, 4)
    for checkpoint in (run, step):
        found = run_directory("runs", "x", "generate", str(checkpoint), None, "auto")
        assert found == str(run / "videos")


def test_generate_from_a_foreign_folder_writes_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "Cosmos-7B"
    folder.mkdir()
    found = run_directory("runs", "x", "generate", str(folder), None, "auto")
    assert found == str(tmp_path / "Cosmos-7B-videos")


def test_generate_out_goes_before_all(tmp_path: Path) -> None:
    add_step(tmp_path / "one", 4)
    found = run_directory("runs", "x", "generate", str(tmp_path / "one"), "there", "auto")
    assert found == "there"


def test_report_writes_into_the_run_that_it_reads(tmp_path: Path) -> None:
    run = tmp_path / "one"
    step = add_step(run, 4)
    # one without a checkpoint so far is taken as it is
    for checkpoint, place in ((run, run), (step, run), (tmp_path / "new", tmp_path / "new")):
        found = run_directory("runs", "x", "report", str(checkpoint), None, "auto")
        assert found == str(place)
    assert run_directory("runs", "one", "report", None, None, "fresh") == "runs/one"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    add_step(tmp_path / "runs" / "one", 4)
    for arguments in (("~/runs/one", None), (None, "~/runs/one/videos")):
        found = run_directory("runs", "x", "generate", *arguments, "auto")
        assert found == str(tmp_path / "runs" / "one" / "videos")
    found = run_directory("~/runs", "one", "post_train", None, None, "auto")
    assert found == str(tmp_path / "runs" / "one")


@pytest.mark.parametrize("name", ["one", "team/one"])
def test_fresh_takes_the_first_free_number(tmp_path: Path, name: str) -> None:
    def fresh(stage: str = "post_train") -> str:
        found = run_directory(str(tmp_path), name, stage, None, None, "fresh")
        return Path(found).relative_to(tmp_path).as_posix()

    assert fresh() == name
    add_step(tmp_path / name, 1)
    assert fresh() == f"{name}-2"
    # a folder without a complete checkpoint is free
    (tmp_path / f"{name}-2" / "checkpoints" / "step_000001").mkdir(parents=True)
    assert fresh() == f"{name}-2"
    add_step(tmp_path / f"{name}-2", 7)
    assert fresh("pipeline") == f"{name}-3"
    assert fresh("preprocess") == fresh("generate") == name


def test_steps_are_the_complete_checkpoints_in_order(tmp_path: Path) -> None:
    assert runs.steps(tmp_path) == []
    for step in (1_000_000, 20, 100):
        add_step(tmp_path, step)
    for name in ("step_000300", "step_000400.tmp", "step_x", "other"):
        (tmp_path / "checkpoints" / name).mkdir()
    for name in ("step_000400.tmp", "step_x", "other"):
        (tmp_path / "checkpoints" / name / "manifest.json").write_text("{}")
    assert runs.steps(tmp_path) == [20, 100, 1_000_000]
    assert runs.step_folder(tmp_path, 20).name == "step_000020"
    assert runs.step_folder(tmp_path, 1_000_000).name == "step_1000000"


def test_a_run_and_its_steps_know_their_run(tmp_path: Path) -> None:
    step = add_step(tmp_path / "one", 4)
    assert runs.run_of(tmp_path / "one") == tmp_path / "one"
    assert runs.run_of(step) == tmp_path / "one"
    assert runs.run_of(tmp_path) is None
    assert runs.run_of(step / "transformer") is None
    assert runs.run_of(tmp_path / "nowhere") is None
