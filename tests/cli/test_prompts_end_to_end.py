"""A prompt with commas, quotes and parentheses, from the command line to the video and back."""

import json
import shlex
import shutil
from pathlib import Path

from conftest import SMALL, Command

CAPTION = 'A robot\'s arm (teal), seen from the "left", lifts = 5 ${x}'
PROMPT = "Two robots, \"left\" and 'right', wave (slowly); 100% = all \\ ${y}"


def test_a_prompt_with_commas_quotes_and_parentheses_goes_through_the_pipeline(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    for video in sorted((small_samples / "samples/synthetic-videos").glob("*.mp4"))[:2]:
        shutil.copy(video, tmp_path / "videos")
    made = command(
        *("stage=pipeline", "data=folder", *SMALL, "data.source=videos", "name=quoted"),
        *(f"data.prompt={CAPTION}", f"generate.prompt={PROMPT}", "trainer.max_steps=2"),
        cwd=tmp_path,
    )
    assert (made.code, made.stderr) == (0, "")
    [manifest] = (tmp_path / "samples").glob("*/manifest.json")
    samples = json.loads(manifest.read_text())["samples"]
    assert {sample["caption"] for sample in samples} == {CAPTION}
    checkpoint = tmp_path / "runs/quoted/checkpoints/step_000002/manifest.json"
    assert json.loads(checkpoint.read_text())["captions"] == [CAPTION]
    [sidecar] = (tmp_path / "runs/quoted/videos").glob("*_??????.json")
    facts = json.loads(sidecar.read_text())
    assert facts["prompt"] == PROMPT

    # the recorded command makes the same video again
    video = sidecar.with_suffix(".mp4")
    before = video.read_bytes()
    video.unlink()
    sidecar.unlink()
    program, *typed = shlex.split(facts["command"])
    assert program == "cosmos-hydra"
    again = command(*typed, cwd=tmp_path)
    assert (again.code, again.stderr) == (0, "")
    assert video.read_bytes() == before

    # without a prompt the caption of the training data is taken, letter for letter
    plain = command(
        *("stage=generate", "checkpoint=runs/quoted", "generate.steps=2", "generate.out=plain"),
        cwd=tmp_path,
    )
    assert plain.code == 0
    [sidecar] = (tmp_path / "plain").glob("*_??????.json")
    assert json.loads(sidecar.read_text())["prompt"] == CAPTION
