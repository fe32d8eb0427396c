"""`stage=export`: what is written, who can load it, what it refuses, and how little it holds."""

import json
import shlex
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from conftest import Command
from small_runs import (
    assert_same_tensors,
    load_folder,
    small_config,
    state_of,
    train,
    trainer_of,
)

from cosmos_hydra import files, runs
from cosmos_hydra.models.transformer import build_transformer
from cosmos_hydra.reading import read_tensors
from cosmos_hydra.stages import export as stage
from cosmos_hydra.weights.diffusers_export import write_diffusers
from cosmos_hydra.weights.locate import locate
from cosmos_hydra.weights.open import open_weights
from cosmos_hydra.weights.source import Source

LORA = ("peft.kind=lora", "peft.rank=4", "peft.alpha=8", "optim.lr=0.01")
WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def trained(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run `whole`, and `tuned` with adapters on it; do not write there."""
    folder = tmp_path_factory.mktemp("trained")
    quick = ("trainer.max_steps=2", "trainer.validate_every=0")
    train(small_config(small_samples, *quick, "optim.lr=0.02"), folder / "whole")
    given = f"resume.path={folder / 'whole'}"
    train(small_config(small_samples, *quick, *LORA, given), folder / "tuned")
    return folder


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights that a new run would start with."""
    source = opened(run)
    return {name: source.read(name) for name in source.entries}


def opened(path: Path) -> Source:
    parameters = build_transformer(small_config(Path()).model).named_parameters()
    return open_weights(locate(str(path), "checkpoint"), {name: p.shape for name, p in parameters})


@pytest.mark.parametrize("run", ["whole", "tuned"])
def test_an_export_in_fp32_is_the_run_bitwise_for_us_and_for_diffusers(
    command: Command, small_samples: Path, trained: Path, tmp_path: Path, run: str
) -> None:
    from diffusers import CosmosTransformer3DModel

    out = tmp_path / "out"
    typed = ["stage=export", f"checkpoint={trained / run}", f"export.path={out}"]
    done = command(*typed, "export.dtype=fp32", "export.shard_gb=0.003", cwd=tmp_path)
    assert (done.code, done.stderr) == (0, "")
    wanted = weights_of(trained / run)
    if run == "whole":
        saved = state_of(trained / run, 2)
        assert_same_tensors(wanted, {name: saved[f"weight.{name}"] for name in wanted})
    ours = build_transformer(small_config(Path()).model)
    load_folder(ours, out)
    assert_same_tensors(ours.state_dict(), wanted)
    theirs, report = CosmosTransformer3DModel.from_pretrained(out, output_loading_info=True)
    assert_same_tensors(theirs.state_dict(), wanted)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    started = trainer_of(small_config(small_samples, f"resume.path={out}"), tmp_path / "next")
    assert_same_tensors(started.transformer.state_dict(), wanted)


def test_files_are_at_most_as_large_as_asked_and_indexed(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    for limit_gb, count in ((0.003, 4), (0.0000001, 50), (10, 1)):
        out = tmp_path / f"out-{limit_gb}"
        typed = ["stage=export", f"checkpoint={trained / 'whole'}", f"export.path={out}"]
        done = command(*typed, "export.dtype=fp32", f"export.shard_gb={limit_gb}", cwd=tmp_path)
        assert f"0.00958 GB of float32 in {count} file{'s' * (count > 1)}; " in done.stdout
        found = sorted(out.glob("*.safetensors"))
        shards = [path for path in found if path.name.startswith(WEIGHTS)]
        assert len(shards) == count
        index = out / f"{WEIGHTS}.safetensors.index.json"
        assert index.is_file() == (count > 1)
        if count == 1:
            assert shards[0].name == f"{WEIGHTS}.safetensors"
            continue
        content = json.loads(index.read_text())
        assert content["metadata"]["total_size"] == 4 * sum(
            tensor.numel() for path in shards for tensor in read_tensors(path).values()
        )
        for path in shards:
            tensors = read_tensors(path)
            assert {n for n, f in content["weight_map"].items() if f == path.name} == set(tensors)
            size_bytes = sum(4 * tensor.numel() for tensor in tensors.values())
            assert size_bytes <= limit_gb * 1e9 or len(tensors) == 1


def test_bf16_is_the_default_and_rounds(command: Command, trained: Path, tmp_path: Path) -> None:
    typed = ["stage=export", f"checkpoint={trained / 'whole'}", "export.path=out"]
    assert command(*typed, cwd=tmp_path).code == 0
    found = read_tensors(tmp_path / "out" / f"{WEIGHTS}.safetensors")
    wanted = weights_of(trained / "whole")
    assert_same_tensors(found, {name: tensor.bfloat16() for name, tensor in wanted.items()})


@pytest.mark.parametrize("target", [pytest.param("original", marks=pytest.mark.slow), "nemo"])
def test_a_foreign_format_makes_the_same_video(
    command: Command, trained: Path, tmp_path: Path, target: str
) -> None:
    typed = ["stage=export", f"checkpoint={trained / 'tuned'}", "export.dtype=fp32"]
    small = ("model.num_layers=2", "model.text_tokens=16", "generate.steps=1")
    made = []
    for name in ("diffusers", target):
        asked = (f"export.format={name}", f"export.path={name}")
        done = command(*typed, *asked, cwd=tmp_path)
        assert (done.code, done.stderr) == (0, "")
        printed = done.stdout.splitlines()[-1].removeprefix("next: ")
        assert command(*shlex.split(printed)[1:], *small, cwd=tmp_path).code == 0
        (video,) = (tmp_path / f"{name}-videos").glob("*_??????.mp4")
        made.append(video.read_bytes())
    assert made[0] == made[1]


def test_the_printed_command_makes_a_video_and_nothing_else_is_left(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    typed = ["stage=export", f"checkpoint={trained / 'tuned'}", "export.path=out"]
    done = command(*typed, cwd=tmp_path)
    assert (done.code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"exporting step 2 of {trained / 'tuned'} as diffusers in bfloat16 into out"
    assert lines[1] == f"weights: 20 of 50 tensors differ from step 2 of {trained / 'whole'}"
    read = f"read from sha256 {locate(str(trained / 'tuned'), 'checkpoint').digest}"
    assert lines[2] == f"exported: out, 0.00479 GB of bfloat16 in 1 file, adapters merged; {read}"
    assert lines[3].startswith("next: cosmos-hydra stage=generate checkpoint=out model=tiny ")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("README.md", "config.json", "tokenizer.safetensors", f"{WEIGHTS}.safetensors")
    }
    # numbers of a model that no option has are typed too
    small = ("model.num_layers=2", "model.text_tokens=16", "generate.steps=1")
    command_line = shlex.split(lines[3].removeprefix("next: "))[1:]
    made = command(*command_line, *small, cwd=tmp_path)
    assert (made.code, made.stderr) == (0, "")
    assert len(list((tmp_path / "out-videos").glob("*_??????.mp4"))) == 1


def test_the_card_says_what_it_began_with_and_names_no_folder_above(
    command: Command, small_samples: Path, trained: Path, tmp_path: Path
) -> None:
    typed = ["stage=export", f"checkpoint={trained / 'tuned'}", "export.path=out"]
    assert command(*typed, cwd=tmp_path).code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    base = locate(str(trained / "whole"), "checkpoint")
    manifest = json.loads((runs.step_folder(trained / "tuned", 2) / "manifest.json").read_text())
    targets = "to_q, to_k, to_v, to_out.0, ff.net.0.proj, ff.net.2"
    for line in (
        f"- began with: `step_000002` (sha256 {base.digest})",
        "- began with: random weights of seed 0",
        "- 20 of 50 tensors differ from what it began with",
        f"- data: `synthetic`, manifest hash {manifest['data']}",
        "- steps: 2 of 2 clips, seed 0",
        f"- LoRA: rank 4, alpha 8, on {targets}; merged here",
        "Trained from random weights: the choice of whoever trained them.",
    ):
        assert line in card.splitlines()
    assert "NVIDIA" not in card
    assert str(trained) not in card
    # weights of a folder may be NVIDIA's
    given = (f"model.weights.path={tmp_path / 'out'}", "trainer.max_steps=1")
    train(small_config(small_samples, *given, "trainer.validate_every=0"), tmp_path / "next")
    typed = ["stage=export", f"checkpoint={tmp_path / 'next'}", "export.path=out2"]
    assert command(*typed, cwd=tmp_path).code == 0
    card = (tmp_path / "out2" / "README.md").read_text()
    digest = locate(str(tmp_path / "out"), "checkpoint").digest
    assert f"- began with: `out` (sha256 {digest})" in card.splitlines()
    assert "license_name: nvidia-open-model-license" in card.splitlines()
    assert "derivative model under the [NVIDIA Open Model License]" in card


def test_generate_says_and_records_how_many_weights_differ(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    typed = ["stage=generate", f"checkpoint={trained / 'tuned'}", "generate.out=out"]
    done = command(*typed, "generate.steps=1", "generate.max_captions=1", cwd=tmp_path)
    base = f"step 2 of {trained / 'whole'}"
    assert f"weights: 20 of 50 tensors differ from {base}\n" in done.stdout
    (sidecar,) = (tmp_path / "out").glob("*_??????.json")
    difference = json.loads(sidecar.read_text())["difference"]
    assert difference == {"base": base, "differing": 20, "compared": 50}


def test_weights_in_which_nothing_changed_are_a_warning(
    command: Command, small_samples: Path, trained: Path, tmp_path: Path
) -> None:
    quick = ("trainer.max_steps=1", "trainer.validate_every=0")
    given = f"resume.path={trained / 'whole'}"
    # too little for float32
    train(small_config(small_samples, *quick, *LORA, given, "optim.lr=1e-30"), tmp_path / "run")
    done = command("stage=export", "checkpoint=run", "export.path=out", cwd=tmp_path)
    assert (
        f"weights: 0 of 50 tensors differ from step 2 of {trained / 'whole'}: training changed "
        f"nothing that is left here\n"
    ) in done.stdout


def test_weights_that_are_gone_are_not_compared_with(
    command: Command, small_samples: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "whole", tmp_path / "base")
    quick = ("trainer.max_steps=1", "trainer.validate_every=0", f"resume.path={tmp_path / 'base'}")
    train(small_config(small_samples, *quick), tmp_path / "run")
    shutil.rmtree(tmp_path / "base")
    done = command("stage=export", "checkpoint=run", "export.path=out", cwd=tmp_path)
    assert done.code == 0
    step = runs.step_folder(tmp_path / "base", 2)
    assert (
        f"not compared with what the run began with: {step} is gone or has changed\n" in done.stdout
    )


def test_what_cannot_be_exported_is_one_line(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    run = trained / "whole"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    assert command("stage=export", f"checkpoint={run}", "export.path=out", cwd=tmp_path).code == 0
    for typed, code, message in (
        ([], 2, "checkpoint=null; set it to the run, or the step of a run, to export"),
        ([f"checkpoint={run}"], 2, "export.path=null; set it to the folder to write"),
        ([f"checkpoint={run}", "export.path=full"], 2, "export.path=full is not empty; remove it"),
        ([f"checkpoint={run}", "export.path=file"], 2, "export.path=file is not empty; remove it"),
        (["checkpoint=nowhere", "export.path=a"], 2, "checkpoint=nowhere does not exist"),
        (
            [f"checkpoint={run}", "export.path=a", "model.num_layers=3"],
            2,
            "model.num_layers=3 but the checkpoint has 2; leave it out",
        ),
    ):
        refused = command("stage=export", *typed, cwd=tmp_path)
        assert refused.code == code
        assert f"cosmos-hydra: {message}" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file", "out"}
    # an empty folder is as good as none
    (tmp_path / "empty").mkdir()
    typed = ["stage=export", f"checkpoint={run}", "export.path=empty"]
    assert command(*typed, cwd=tmp_path).code == 0


def test_a_failed_export_leaves_nothing(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(folder: Path, *arguments: object) -> None:
        (folder / f"{WEIGHTS}.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage, "write_diffusers", failing)
    typed = ["stage=export", f"checkpoint={trained / 'whole'}", "export.path=out"]
    failed = command(*typed, cwd=tmp_path)
    assert failed.code == 1
    assert failed.stderr.startswith("cosmos-hydra: out: no space left on device; free some space")
    assert list(tmp_path.iterdir()) == []


def test_one_weight_at_a_time_is_read_and_gone_before_the_next(tmp_path: Path) -> None:
    """So memory follows the largest weight, whatever the model and the size of a file."""
    alive: list[weakref.ref] = []

    class Watched(Source):
        def read(self, name: str) -> torch.Tensor:
            assert [one for one in alive if one() is not None] == []
            tensor = torch.full((256, 256), float(len(alive)))
            alive.append(weakref.ref(tensor.untyped_storage()))
            return tensor

    shapes = {f"weight{number}": torch.Size((256, 256)) for number in range(20)}
    for dtype in (torch.float32, torch.bfloat16):
        alive.clear()
        folder = tmp_path / str(dtype)
        folder.mkdir()
        names = write_diffusers(folder, Watched(folder), shapes, dict.fromkeys(shapes, dtype), 10)
        assert len(alive) == 20
        found = read_tensors(folder / names[0])
        assert [found[name].float().unique().tolist() for name in shapes] == [
            [float(number)] for number in range(20)
        ]


def test_the_source_stays_as_it_is(command: Command, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "whole", tmp_path / "run")
    before = {path: files.sha256_of(path) for path in (tmp_path / "run").rglob("*.*")}
    assert command("stage=export", "checkpoint=run", "export.path=out", cwd=tmp_path).code == 0
    after = {path: files.sha256_of(path) for path in (tmp_path / "run").rglob("*.*")}
    assert after == before
