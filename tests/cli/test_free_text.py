"""Free text on the command line: what is typed is what the config holds, alone and in a sweep."""

import json
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import SMALL, Command
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from cosmos_hydra import config as schema
from cosmos_hydra.job import Job
from cosmos_hydra.overrides import TEXT_KEYS, conf_folder, quote_free_text

PIECES = (
    *("a robot", " ", "  ", ",", "'", '"', "(", ")", "=", "\\", "${x}", "${", "}", "[", "]", "{"),
    *(":", "#", "\n", "\r", "\t", "\u00e9", "\u673a\u5668\u4eba", "$", "~", "%", "+", "*", ";"),
    *("\\'", '\\"', "\\${x}", "\\\\", "null", "true", "3.5", "@", "/", "|", "!", "`", "???x"),
)
HARD = (
    "A robot, seen from the left, lifts",
    "it's a robot's arm",
    'the "teal" robot',
    "'one' and 'two'",
    "\"one\" and 'two'",
    "a (left) arm = good",
    "ends with a backslash \\",
    "ends with two \\\\",
    "'begins quoted' only",
    "choice(1,2)",
    "range(1,3)",
    "a=1,b=2",
    "${oc.env:HOME} is not looked up",
    "\\${x} and \\\\${x}",
    "open ${ only",
    "first line\nsecond line",
    "  blanks around  ",
    "[1, 2]",
    "{a: 1}",
    "null, true, 3",
    "\u673a\u5668\u4eba caf\u00e9",
    "~#!$%^&*",
)


def typed_texts() -> list[str]:
    """Return hard cases and 300 random texts; those in quotes of their own are left out."""
    generator = random.Random(20240)
    texts = list(HARD)
    while len(texts) < len(HARD) + 300:
        text = "".join(generator.choices(PIECES, k=generator.randint(1, 9)))
        if text not in ("null", "???") and not (text[0] == text[-1] and text[0] in "'\""):
            texts.append(text)
    return texts


def test_any_text_reaches_the_config_as_typed() -> None:
    parser = OverridesParser.create()
    for text in typed_texts():
        [argument] = quote_free_text([f"data.prompt={text}"])
        override = parser.parse_override(argument)
        assert not override.is_sweep_override(), text
        assert OmegaConf.create({"prompt": override.value()}).prompt == text
        # in a sweep Hydra writes every override out and parses it a second time
        again = f"data.prompt={override.get_value_element_as_str()}"
        value = parser.parse_override(again).value()
        assert OmegaConf.create({"prompt": value}).prompt == text


def test_what_was_quoted_once_is_not_quoted_again() -> None:
    for text in typed_texts():
        once = quote_free_text([f"data.prompt={text}"])
        assert quote_free_text(once) == once


def test_a_suggested_command_pasted_into_a_shell_means_the_same() -> None:
    for text in typed_texts():
        typed = quote_free_text(["stage=preprocess", f"data.prompt={text}"])
        pasted = shlex.split(Job(Path("runs/a"), tuple(typed)).command(stage="post_train"))
        assert pasted[0] == "cosmos-hydra"
        assert quote_free_text(pasted[1:]) == ["stage=post_train", typed[1]]


@pytest.mark.parametrize("key", sorted(TEXT_KEYS))
def test_text_of_every_prompt_key_survives_composition(key: str) -> None:
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        for text in HARD[:6]:
            typed = ["stage=generate", f"{key}={text}"]
            config = schema.load(compose("config", quote_free_text(typed)))
            section, _, field = key.partition(".")
            assert getattr(getattr(config, section), field) == text


def test_quotes_typed_for_hydra_null_and_nothing_stay_as_typed() -> None:
    for value in ("'a, b'", '"a, b"', "'it\\'s'", "null", "", "'ends with \\\\'"):
        assert quote_free_text([f"data.prompt={value}"]) == [f"data.prompt={value}"]


def test_other_keys_and_options_stay_as_typed() -> None:
    typed = ["-m", "optim.lr=1e-4,1e-3", "--cfg", "job", "data=robot", "pipeline.stages=[a,b]"]
    assert quote_free_text(typed) == typed


def test_a_path_may_hold_commas_and_refer_to_other_keys(command: Command, tmp_path: Path) -> None:
    source = "${paths.samples}/my videos, (old)"
    refused = command("stage=preprocess", "data=folder", f"data.source={source}", cwd=tmp_path)
    assert (refused.code, refused.stderr) == (
        1,
        "cosmos-hydra: data.source=samples/my videos, (old) is no folder; set it to your videos\n",
    )


def test_a_sweep_of_two_values_is_two_jobs_and_commas_in_a_prompt_make_no_more(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for video in sorted((small_samples / "samples/synthetic-videos").glob("*.mp4"))[:2]:
        shutil.copy(video, videos)
    prompt = 'A robot\'s arm, seen from the left (or "right"), lifts = 5 ${x}'
    swept = command(
        *("-m", "stage=preprocess", "data=folder", *SMALL),
        *("data.source=videos", "data.path=samples/${data.fit}", "data.fit=crop,stretch"),
        f"data.prompt={prompt}",
        cwd=tmp_path,
    )
    assert (swept.code, swept.stderr) == (0, "")
    assert re.findall(r"^== job (\d): runs/sweeps/.*/\1 ==$", swept.stdout, re.M) == ["0", "1"]
    for fit in ("crop", "stretch"):
        manifest = json.loads((tmp_path / "samples" / fit / "manifest.json").read_text())
        assert manifest["settings"]["data"]["fit"] == fit
        assert {sample["caption"] for sample in manifest["samples"]} == {prompt}
    [sweep] = (tmp_path / "runs/sweeps/tiny-folder").iterdir()
    assert sorted(entry.name for entry in sweep.iterdir()) == ["0", "1", "sweep.csv"]
    for job, fit in (("0", "crop"), ("1", "stretch")):
        assert f"data.fit={fit}\n" in (sweep / job / ".hydra/overrides.yaml").read_text()
        assert f"samples: samples/{fit}, " in (sweep / job / "run.log").read_text()


def test_a_wrong_value_in_a_sweep_ends_it_with_the_same_line(
    command: Command, tmp_path: Path
) -> None:
    refused = command("-m", "stage=preprocess", "trainer.max_steps=0,-1", cwd=tmp_path)
    assert refused.code == 2
    lines = [f"cosmos-hydra: trainer.max_steps={n} is too small; at least 1\n" for n in (0, -1)]
    assert refused.stderr == "".join(lines)
