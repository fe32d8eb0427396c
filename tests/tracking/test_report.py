"""report.html of a real small run: what it says, and that nothing in it is loaded or run."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from browser import find_chromium, start_browser
from conftest import REPORTED, Command
from pages import parse
from PIL import Image
from small_runs import SAMPLES

from cosmos_hydra import runs
from cosmos_hydra.main import main

HOSTILE = "<script>alert('caption')</script> & \"a robot\" </p><img src=x onerror=alert(1)>"
STEPS = 12


@pytest.fixture(scope="module")
def folder(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder where runs/one was trained on hostile captions, with videos generated."""
    folder = tmp_path_factory.mktemp("report")
    samples = folder / "samples" / "small"
    shutil.copytree(small_samples / SAMPLES, samples)
    manifest = json.loads((samples / "manifest.json").read_text())
    for entry in manifest["samples"]:
        entry["caption"] = HOSTILE
    manifest["counts"]["skipped"] = {"shorter than <b>9</b> frames": 2}
    manifest["counts"]["found"] += 2
    (samples / "manifest.json").write_text(json.dumps(manifest))
    typed = ["stage=pipeline", "pipeline.stages=[post_train,generate]", "name=one", *REPORTED]
    typed += ["data.path=samples/small", f"trainer.max_steps={STEPS}", "trainer.preview_every=6"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["cosmos-hydra", *typed])
        main()
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, in runs/one beside its samples, to change."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "one"


def test_the_top_says_how_far_it_came_what_it_reached_and_how_to_repeat_it(folder: Path) -> None:
    run = folder / "runs" / "one"
    text = parse(run / "report.html").sections["header"]
    assert f"Finished at step {STEPS} of {STEPS}" in text
    validation = [row for row in metrics_of(run) if "val_loss" in row]
    assert f"The validation loss is {validation[-1]['val_loss']:.3f} at step {STEPS}" in text
    described = json.loads((run / "run.json").read_text())
    assert described["command"] in text
    assert f"{described['parameters'] / 1e6:.1f} M parameters" in text
    assert "10" in text
    assert "2 held out" in text
    assert re.search(r"Median step[\d.]+ s[\d,]+ tokens/s", text)
    assert re.search(r"Peak memory\d\.\d\d GB", text)


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_plots_show_losses_with_both_baselines_and_how_to_read_them(folder: Path) -> None:
    page = parse(folder / "runs" / "one" / "report.html")
    plots = page.plots()
    assert list(plots) == [
        "Validation loss",
        "Validation loss by noise level",
        "Training loss",
        "Gradient norm",
        "Seconds a step",
        "Learning rate",
    ]
    for label in ("network", "gaussian denoiser", "linear denoiser"):
        assert f">{label}</text>" in plots["Validation loss"]
    for label in (f"step {STEPS}", "step 0", "gaussian denoiser", "linear denoiser"):
        assert f">{label}</text>" in plots["Validation loss by noise level"]
    assert "denoisers in closed form" in page.sections["learning"]
    assert "Every step." in page.sections["learning"]


def test_the_config_table_holds_what_was_typed_and_nothing_else(folder: Path) -> None:
    page = parse(folder / "runs" / "one" / "report.html")
    head, *rows = page.rows["config"]
    assert len(head) == 3
    changed = {key: (before, now) for key, before, now in rows}
    assert changed["trainer.max_steps"] == ("1000", str(STEPS))
    assert changed["name"] == ("tiny-synthetic", "one")
    typed = {item.partition("=")[0] for item in REPORTED} | {"name", "data.path", "pipeline.stages"}
    assert set(changed) <= typed
    assert "optim.lr=0.001" in page.sections["config"]
    assert "torch 2." in page.sections["config"]


def test_counts_captions_and_clips_of_the_data_are_named(folder: Path) -> None:
    page = parse(folder / "runs" / "one" / "report.html")
    text = page.sections["data"]
    assert "Found 8 videos = kept 6 + skipped 2 + failed 0." in text
    assert "skipped 2 \N{MULTIPLICATION SIGN} shorter than <b>9</b> frames" in text
    assert "10 clips to train on and 2 held out, in samples/small." in text
    assert "One caption" in text
    assert HOSTILE in text


def test_previews_videos_and_nearest_clips_are_embedded_as_they_are(folder: Path) -> None:
    run = folder / "runs" / "one"
    page = parse(run / "report.html")
    names = ("step_000000.png", f"step_{STEPS:06d}.png", "data.png")
    pictures = [(run / "previews" / name).read_bytes() for name in names]
    assert page.embedded("image/png") == pictures
    clips = [f"previews/{name}_0.mp4" for name in ("data", "step_000000", f"step_{STEPS:06d}")]
    [sidecar] = (run / "videos").glob("*_??????.json")
    clips += [f"videos/{sidecar.stem}.mp4", f"videos/{sidecar.stem}.nearest.mp4"]
    assert page.embedded("video/mp4") == [(run / clip).read_bytes() for clip in clips]
    nearest = json.loads(sidecar.with_suffix(".nearest.json").read_text())
    text = page.sections["generated-videos"]
    assert f"Nearest training clip: {nearest['video']} from frame {nearest['start_frame']}" in text
    ratio = nearest["distance"] / nearest["held_out_distance"]
    assert f"Distance {nearest['distance']:.3f}, {ratio:.2g} times the " in text
    for tag, attributes in page.attributes:
        if tag == "video":
            assert attributes.keys() >= {"controls", "loop", "muted", "playsinline"}
            assert str(attributes["poster"]).startswith("data:image/jpeg;base64,")


def test_the_hardest_clips_are_named_with_video_and_caption(folder: Path) -> None:
    head, *rows = parse(folder / "runs" / "one" / "report.html").rows["hardest-clips"]
    assert len(head) == 6
    manifest = json.loads((folder / "samples/small/manifest.json").read_text())
    clips = {entry["id"]: entry for entry in manifest["samples"]}
    assert rows
    for loss, visits, sample, video, start_frame, caption in rows:
        assert float(loss.split()[0]) > 0
        assert int(visits) >= 2
        clip = clips[sample]
        assert (video, int(start_frame), caption) == (clip["video"], clip["start_frame"], HOSTILE)


def test_seconds_add_up_to_what_was_measured(folder: Path) -> None:
    run = folder / "runs" / "one"
    _, *rows = parse(run / "report.html").rows["time"]
    rows_by_name = {name.strip(): (float(seconds), share) for name, seconds, share in rows}
    assert set(rows_by_name) == {
        "data wait",
        "step compute",
        "validation",
        "previews",
        "checkpoints",
    }
    measured = ("step_s", "validation_s", "preview_s", "checkpoint_s")
    total = sum(row.get(name, 0) for row in metrics_of(run) for name in measured)
    assert sum(seconds for seconds, _ in rows_by_name.values()) == pytest.approx(total, abs=0.3)
    shares = sum(float(share.rstrip("%")) for _, share in rows_by_name.values())
    assert shares == pytest.approx(100, abs=0.5)


def test_text_from_data_is_never_markup_and_nothing_is_loaded(folder: Path) -> None:
    report = folder / "runs" / "one" / "report.html"
    page, content = parse(report), report.read_text()
    assert "<script" not in content
    assert "onerror=alert(1)>" not in content
    assert "&lt;script&gt;alert(&#x27;caption&#x27;)&lt;/script&gt;" in content
    for tag, attributes in page.attributes:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "poster", "srcset", "action"):
            assert str(attributes.get(name, "#")).startswith(("data:", "#")), (tag, attributes)
    assert "://" not in re.sub(r'"data:[^"]*"', "", content)
    assert "url(" not in content
    assert "@import" not in content
    assert {"script", "link", "iframe", "object", "embed"}.isdisjoint(
        tag for tag, _ in page.attributes
    )
    policies = [found["content"] for _, found in page.attributes if "http-equiv" in found]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
    ]


def test_the_stage_makes_the_same_report_again_and_touches_nothing_else(
    command: Command, run: Path
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    place = run.parent.parent
    step = runs.step_folder(Path("runs/one"), STEPS)
    for typed in (["name=one"], ["checkpoint=runs/one"], [f"checkpoint={step}"]):
        (run / "report.html").unlink()
        made = command("stage=report", *typed, cwd=place)
        assert (made.code, made.stdout, made.stderr) == (0, "report: runs/one/report.html\n", "")
        after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert after == before
    assert [path.name for path in (place / "runs").iterdir()] == ["one"]


@pytest.mark.parametrize("checkpoint", ["nowhere", "samples/small"])
def test_what_is_no_run_is_one_line(
    command: Command, folder: Path, tmp_path: Path, checkpoint: str
) -> None:
    (tmp_path / "samples" / "small").mkdir(parents=True)
    refused = command("stage=report", f"checkpoint={checkpoint}", cwd=tmp_path)
    message = f"cosmos-hydra: checkpoint={checkpoint} is no run, step or sweep\n"
    assert (refused.code, refused.stderr) == (2, message)
    assert not list(tmp_path.rglob("report.html"))


@pytest.mark.slow
def test_both_stages_leave_the_report_out_when_asked_to(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "report.html").unlink()
    typed = ["name=one", *REPORTED, "data.path=samples/small", f"trainer.max_steps={STEPS + 1}"]
    place = run.parent.parent
    trained = command("stage=post_train", *typed, "log.report=false", cwd=place)
    assert trained.code == 0, trained.stderr
    made = ["stage=generate", "checkpoint=runs/one", "generate.steps=1"]
    assert command(*made, "log.report=false", cwd=place).code == 0
    assert not (run / "report.html").exists()
    # and generate writes it for a run that lies elsewhere
    generated = command(*made, "generate.seed=7", cwd=place)
    assert f"report: {Path('runs/one/report.html')}" in generated.stdout
    text = parse(run / "report.html").sections["generated-videos"]
    assert "Generated, seed 7" in text
    # videos outside the run leave its report as it was
    (run / "report.html").unlink()
    command(*made, "generate.out=out", cwd=place)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_it_whole_at_the_width_of_a_phone_and_of_a_desktop(
    folder: Path, tmp_path: Path, width: int
) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium on PATH")
    report = folder / "runs" / "one" / "report.html"
    with start_browser(program, tmp_path / "profile") as browser:
        page = browser.open(report, width)
    assert page.messages == []
    assert page.facts["scroll_width"] == page.facts["width"]
    assert page.facts["width"] in range(width - 20, width + 1)
    assert page.facts["too_wide"] == []
    assert (page.facts["broken_pictures"], page.facts["broken_videos"]) == (0, 0)
    [own, *embedded] = page.addresses
    assert own == report.resolve().as_uri()
    assert all(address.startswith("data:") for address in embedded)
    (tmp_path / "report.png").write_bytes(page.png)
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.width == page.facts["width"]
        assert picture.height > 2000
