"""Secrets of the environment are in no byte that a command prints or writes, whatever happens.

The commands run in a process of their own; then every file below its folder, home and temporary
folder is searched, names included, for each secret and its usual encodings.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import REPORTED

HUB = "hf_CanaryOfTheHubThatNobodyMaySee0123456"
WANDB = "c0ffee" * 6 + "cafe"
PASSWORD = "canary password/1"
# by the variable that holds it; the last two lie in files
CANARIES = {
    "HF_TOKEN": HUB,
    "HUGGING_FACE_HUB_TOKEN": "hf_CanaryOfTheHubInItsOlderVariable012345",
    "WANDB_API_KEY": WANDB,
    "AWS_SECRET_ACCESS_KEY": "Canary+Of/The/Cloud+0123456789abcdefghij",
    "DATABASE_PASSWORD": "canary-0f-the-database",
    "HTTPS_PROXY": PASSWORD,
    "HF_HOME": "hf_CanaryOfTheHubThatLiesInAFile01234567",
    "NETRC": "canary-of-the-password-file",
}
PROXY = f"http://user:{quote(PASSWORD, safe='')}@127.0.0.1:9"
Commands = list[tuple[str | None, list[str]]]
STAGE = "stage=preprocess"
TRAIN = ["stage=post_train", *REPORTED, "name=one", "log.wandb=offline"]
LOOKED_UP = "${oc.env:HF_TOKEN}"
# exit code, what fails, what is typed
QUICK = [
    (0, None, [STAGE, *REPORTED]),
    (0, None, [*TRAIN, "trainer.max_steps=1"]),
    (1, "crash", [STAGE, *REPORTED]),
    (0, "thread", [STAGE, *REPORTED]),
    (0, "warn", [STAGE, *REPORTED, "hydra.verbose=true"]),
    (130, "ctrl-c", [STAGE, *REPORTED]),
    (1, "disk", [STAGE, *REPORTED]),
    (1, "crash", ["-m", STAGE, *REPORTED, "seed=1,2"]),
    (0, None, ["--cfg", "all"]),
    (2, None, ["--cfg", "job", "--resolve", f"log.wandb_project={LOOKED_UP}"]),
    (2, None, [STAGE, f"name={LOOKED_UP}"]),
    (2, None, [STAGE, f"+hf_token={HUB}"]),
    (2, None, ["-m", STAGE, f"name=a,{WANDB}"]),
    (2, None, [STAGE, f"data.prompt=with {PASSWORD} in it"]),
]
SLOW = [
    (0, None, [*TRAIN, "trainer.max_steps=2", "trainer.preview_every=1"]),
    (0, None, ["stage=generate", "checkpoint=runs/one", f"generate.prompt=A {LOOKED_UP} robot."]),
    (
        0,
        None,
        ["stage=pipeline", *REPORTED, "name=two", "trainer.max_steps=1", "hydra.verbose=true"],
    ),
    (0, None, ["stage=report", "checkpoint=runs/one"]),
    (0, None, ["-m", "stage=post_train", *REPORTED, "trainer.max_steps=1", "seed=1,2"]),
    (None, None, ["stage=doctor"]),
    (None, None, ["stage=doctor", "log.wandb=online", "model=7b"]),
    (0, None, [STAGE, *REPORTED, "hydra.output_subdir=.hydra"]),
    *((0, None, words.split()) for words in ("--cfg job", "--cfg hydra", "--cfg job --resolve")),
    *((0, None, words.split()) for words in ("--info", "--info plugins", "--info defaults")),
    *((0, None, words.split()) for words in ("--help", "--help model=7b", "--hydra-help")),
    *((2, None, [STAGE, *words.split()]) for words in ("--wrong", "model=8b", "modl=7b", "seed=a")),
    (1, "crash", ["stage=pipeline", *REPORTED, "pipeline.stages=[preprocess]"]),
    *((2, None, [STAGE, f"{key}={LOOKED_UP}"]) for key in ("name", "paths.runs", "data.path")),
    *((2, None, [STAGE, f"{key}={LOOKED_UP}"]) for key in ("log.wandb_project", "data.captions")),
    *((2, None, [STAGE, f"hydra.{key}={LOOKED_UP}"]) for key in ("run.dir", "verbose")),
    (2, None, ["-m", STAGE, f"hydra.sweep.dir={LOOKED_UP}"]),
    (2, None, ["-m", STAGE, f"hydra.sweep.subdir={LOOKED_UP}"]),
    (2, None, ["-m", STAGE, f"name=a,{LOOKED_UP}"]),
    (2, None, [STAGE, "hydra.job.env_copy=[HF_TOKEN]"]),
    (2, None, [STAGE, f"+hydra.job.env_set.NCCL_DEBUG={LOOKED_UP}"]),
    (2, None, [STAGE, "name='${oc.env:\"WANDB_API_KEY\"}'"]),
    *(
        (2, None, [STAGE, word])
        for word in (HUB, f"--{HUB}", f"{HUB}=1", f"+{HUB}=1", f"name={HUB}")
    ),
    (2, None, ["--config-dir", f"/{WANDB}", STAGE]),
    (2, None, ["--config-name", WANDB]),
    (2, None, [STAGE, f"data.source=http://user:{quote(PASSWORD, safe='')}@host/videos"]),
    (2, None, [STAGE, "checkpoint=https://me:secret@host/run"]),
    *((2, None, ["--config-dir", "{theirs}", STAGE, f"experiment={e}"]) for e in ("name", "text")),
    *((2, None, ["--config-dir", "{theirs}", STAGE, f"experiment={e}"]) for e in ("key", "broken")),
    *(
        (2, None, ["--config-dir", "{theirs}", f"experiment={e}", "--cfg", "job"])
        for e in ("name",)
    ),
]
THEIRS = {
    "name": f"name: {HUB}",
    "text": f"data: {{prompt: 'a {HUB}'}}",
    "key": f"{HUB}: 1",
    "broken": f"name: [{HUB}",
    "built": "data: {prompt: TOKEN}\nname: '${oc.env:HF_${data.prompt}}'",
}


def encodings(secret: str) -> set[bytes]:
    """Return the usual forms of a secret in a log or a header."""
    forms = {secret.encode(), quote(secret, safe="").encode()}
    for text in (secret, f"user:{secret}", f"api:{secret}"):
        forms |= {base64.b64encode(text.encode()), base64.urlsafe_b64encode(text.encode())}
    return forms


def environment(root: Path, planted: Path) -> dict[str, str]:
    """Return an environment that holds every secret, with home and temporary folder below root."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    for name in ("home", "tmp", "work"):
        (root / name).mkdir()
    (planted / "hf").mkdir(parents=True)
    (planted / "hf/token").write_text(CANARIES["HF_HOME"])
    (planted / "netrc").write_text(
        f"machine api.wandb.ai login user password {CANARIES['NETRC']}\n"
    )
    for name, text in THEIRS.items():
        path = planted / "theirs/experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n{text}\n")
    values = {**CANARIES, "HTTPS_PROXY": PROXY, "HF_HOME": str(planted / "hf")}
    values |= {"NETRC": str(planted / "netrc"), "OMP_NUM_THREADS": "1"}
    return {**kept, **values, "HOME": str(root / "home"), "TMPDIR": str(root / "tmp")}


def found_below(root: Path) -> list[str]:
    """Return where a secret is, in the content of a file or in a name."""
    forms = {(name, form) for name, secret in CANARIES.items() for form in encodings(secret)}
    forms = {(name, form.lower()) for name, form in forms}
    found = []
    for path in root.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        text = (bytes(path.relative_to(root)) + b"\n" + content).lower()
        found += [f"{name} in {path.relative_to(root)}" for name, form in forms if form in text]
    return found


@pytest.mark.parametrize(
    "commands", [QUICK, pytest.param([*QUICK, *SLOW], marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_no_command_shows_or_stores_a_secret(
    small_samples: Path, tmp_path: Path, commands: list[tuple[int | None, str | None, list[str]]]
) -> None:
    root, planted = tmp_path / "root", tmp_path / "planted"
    root.mkdir()
    variables = environment(root, planted)
    shutil.copytree(small_samples / "samples", root / "work/samples")
    orders = [
        (failure, [word.replace("{theirs}", str(planted / "theirs")) for word in words])
        for _, failure, words in commands
    ]
    (planted / "commands.json").write_text(json.dumps(orders))
    program = [sys.executable, str(Path(__file__).with_name("many_commands.py"))]
    with (root / "stdout").open("wb") as stdout, (root / "stderr").open("wb") as stderr:
        subprocess.run(
            [*program, str(planted / "commands.json")],
            cwd=root / "work",
            env=variables,
            stdout=stdout,
            stderr=stderr,
            check=True,
        )
    lines = (root / "stdout").read_text().splitlines()
    codes = json.loads(next(line for line in reversed(lines) if line.startswith("[")))
    for code, (expected, _, words) in zip(codes, commands, strict=True):
        assert expected in (code, None), (code, words)
    assert found_below(root) == []
    # what was starred out was there to be found
    assert "Bearer ***" in (root / "stdout").read_text()
    assert "RuntimeError: no access: 401 for Bearer ***" in (root / "stderr").read_text()
    assert (root / "work/runs/one/wandb").is_dir()
