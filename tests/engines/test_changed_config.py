"""Every config key, labelled: what a run that goes on refuses, what it logs, what has no part."""

import copy
import json
import logging
import shutil
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, Command
from small_runs import small_config, train

from cosmos_hydra import config as schema
from cosmos_hydra import runs
from cosmos_hydra.changes import flat
from cosmos_hydra.config import Config
from cosmos_hydra.data.store import SampleStore, open_store
from cosmos_hydra.engines.torch.checkpoint import newest
from cosmos_hydra.engines.torch.start import check_unchanged, plan_start
from cosmos_hydra.errors import ConfigError

# the weights, what they see, and the state of the optimizer would be another run's
REFUSED = {
    *("seed", "trainer.global_batch_size", "optim.betas", "optim.eps"),
    *("model.name", "model.num_layers", "model.num_heads", "model.head_dim", "model.mlp_ratio"),
    *("model.adaln_lora_dim", "model.text_tokens", "model.text_dim", "model.latent_channels"),
    "model.condition_mask",
    *("model.max_size", "model.patch_size", "model.rope_scale"),
    *("model.tokenizer.kind", "model.text_encoder.kind"),
    *("peft.kind", "peft.rank", "peft.alpha", "peft.targets"),
    *("model.objective.sigma_data", "model.objective.p_mean", "model.objective.p_std"),
    *("model.objective.text_dropout", "model.objective.given_frames"),
    *("model.objective.given_p_mean", "model.objective.given_p_std"),
    "model.objective.given_sigma",
    "engine.name",
    # this run began with random weights
    *("resume.path", "model.weights.path"),
}
# from here on the run does what was asked for
LOGGED = {
    *("trainer.max_steps", "trainer.micro_batch_size", "trainer.max_skipped_steps"),
    *("trainer.save_every", "trainer.keep", "trainer.preview_every", "trainer.preview_steps"),
    *("trainer.validate_every", "trainer.validation_samples", "trainer.validation_sigmas"),
    *("optim.lr", "optim.weight_decay", "optim.schedule", "optim.warmup_steps"),
    *("optim.min_lr_ratio", "optim.grad_clip"),
    *("parallel.precision", "parallel.recompute", "parallel.compile"),
    *("parallel.dp_replicate", "parallel.dp_shard", "parallel.cp", "parallel.tp"),
    *("parallel.sequence_parallel", "parallel.recompute_except", "parallel.attention"),
    *("parallel.offload_activations", "parallel.linears", "optim.state"),
    *("engine.device", "engine.force", "engine.fp8", "engine.megatron_fsdp"),
    *("model.tokenizer.path", "model.tokenizer.repo", "model.tokenizer.revision"),
    *("model.text_encoder.path", "model.text_encoder.repo", "model.text_encoder.revision"),
    *("model.weights.repo", "model.weights.revision", "model.weights.format"),
    "model.weights.from_scratch",
    *("model.default_lr", "model.default_guidance"),
}
# training takes nothing from these; the samples are compared by content
UNUSED = (
    *("checkpoint", "data.", "export.", "generate.", "launch.", "log.", "name", "paths."),
    *("pipeline.", "preprocess.", "plan.", "stage", "download."),
)
UNUSED_TOO = {"resume.mode"}


def label(key: str) -> str:
    """Return what happens when a key changes; an AssertionError says that it has no label."""
    found = [
        name
        for name, is_it in (
            ("refused", key in REFUSED),
            ("logged", key in LOGGED),
            ("unused", key.startswith(UNUSED) or key in UNUSED_TOO),
        )
        if is_it
    ]
    assert len(found) == 1, f"{key} is labelled {found}"
    return found[0]


def keys() -> list[str]:
    return list(flat(schema.to_dict(small_config(Path()))))


def other(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, Enum):
        members = list(type(value))
        return members[(members.index(value) + 1) % len(members)]
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [other(part) for part in value] or [1]
    return f"{value or ''}-other"


def typed(value: Any) -> str:
    """Return a value as one would type it."""
    return value if isinstance(value, str) else json.dumps(value)


def with_other(config: Config, key: str) -> Config:
    """Return the config with another value of one key."""
    config = copy.deepcopy(config)
    *sections, field = key.split(".")
    section: Any = config
    for name in sections:
        section = getattr(section, name)
    setattr(section, field, other(getattr(section, field)))
    return config


@pytest.fixture(scope="module")
def finished(small_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 2 steps from random weights; do not write into it."""
    run = tmp_path_factory.mktemp("finished")
    train(small_config(small_samples, "trainer.max_steps=2"), run)
    return run


def test_every_key_has_one_label_and_every_label_a_key() -> None:
    known = keys()
    counts = [label(key) for key in known]
    assert set(known) >= REFUSED | LOGGED | UNUSED_TOO
    assert {kind: counts.count(kind) for kind in set(counts)} == {
        "refused": 34,
        "logged": 45,
        "unused": len(known) - 79,
    }


Before = tuple[Config, dict[str, Any], SampleStore]


@pytest.fixture(scope="module")
def before(small_samples: Path, finished: Path) -> Before:
    """Return the config of the run, what its checkpoint says, and its samples."""
    config = small_config(small_samples, "trainer.max_steps=2")
    found = newest(finished)
    assert found is not None
    return config, found.manifest, open_store(config.data.path)


@pytest.mark.parametrize("key", [key for key in keys() if label(key) == "refused"])
def test_a_change_that_would_make_it_another_run_is_refused_with_the_difference(
    before: Before, key: str
) -> None:
    config, manifest, store = before
    changed = with_other(config, key)
    old, new = (flat(schema.to_dict(values))[key] for values in (config, changed))
    with pytest.raises(ConfigError) as refusal:
        check_unchanged(changed, manifest, store)
    assert str(refusal.value) == (
        f"name=tiny-synthetic is a run with another config: "
        f"{key}: {typed(old)} -> {typed(new)}; "
        "choose another name or resume.mode=fresh"
    )


@pytest.mark.parametrize("key", [key for key in keys() if label(key) != "refused"])
def test_any_other_change_goes_on_and_is_logged_where_it_matters(
    before: Before, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    config, manifest, store = before
    caplog.set_level(logging.INFO)
    check_unchanged(with_other(config, key), manifest, store)
    changed = [line for line in caplog.messages if line.startswith("changed since the run began")]
    assert [line.split(": ")[1] for line in changed] == [key] * (label(key) == "logged")


def test_several_changes_come_out_together(before: Before) -> None:
    config, manifest, store = before
    changed = with_other(with_other(config, "seed"), "model.objective.p_std")
    with pytest.raises(ConfigError, match=r"model\.objective\.p_std: 1\.0 -> 2\.0, seed: 0 -> 1;"):
        check_unchanged(changed, manifest, store)


@pytest.fixture(scope="module")
def post_trained(
    small_samples: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder with a run `one` that began with the weights of `source`."""
    folder = tmp_path_factory.mktemp("post_trained")
    shutil.copytree(finished, folder / "source")
    given = f"resume.path={folder / 'source'}"
    train(small_config(small_samples, given, "trainer.max_steps=1"), folder / "one")
    return folder


def refusal(run: Path, small_samples: Path, given: str) -> str:
    """Return why a run does not go on with an override; nothing when it does."""
    config = small_config(small_samples, given)
    try:
        start = plan_start(config, run, open_store(config.data.path))
    except ConfigError as error:
        return str(error)
    assert start.checkpoint is not None
    return ""


def test_the_weights_a_run_began_with_may_move_or_be_left_out_but_not_be_others(
    small_samples: Path, post_trained: Path, tmp_path: Path
) -> None:
    # the run's config names this one, which is still there to compare with
    source = post_trained / "source"
    copy, one = tmp_path / "source", post_trained / "one"
    shutil.copytree(source, copy)
    step = runs.step_folder(copy, 2)
    for same in (source, copy, step):
        for key in ("resume.path", "model.weights.path"):
            assert refusal(one, small_samples, f"{key}={same}") == ""
    assert refusal(one, small_samples, "resume.path=null") == ""
    for key, differences in {
        "resume.path": f"resume.path: {source} -> {one}",
        "model.weights.path": f"model.weights.path: null -> {one}, resume.path: {source} -> null",
    }.items():
        assert refusal(one, small_samples, f"{key}={one}") == (
            f"name=tiny-synthetic is a run with another config: {differences}; "
            "choose another name or resume.mode=fresh"
        )


def test_weights_that_are_gone_have_moved(
    small_samples: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "source")
    given = f"resume.path={tmp_path / 'source'}"
    one = tmp_path / "one"
    train(small_config(small_samples, given, "trainer.max_steps=1"), one)
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    assert refusal(one, small_samples, f"resume.path={tmp_path / 'elsewhere'}") == ""
    assert refusal(one, small_samples, given) == ""


def content(run: Path) -> dict[str, bytes]:
    """Return every file of a run but run.log."""
    files = (path for path in run.rglob("*") if path.is_file() and path.name != "run.log")
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def test_a_refused_command_leaves_the_run_as_it_was_and_an_allowed_one_says_what_changed(
    command: Command, small_samples: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_samples / "samples", tmp_path / "samples")
    typed = (*SMALL, "trainer.validate_every=0", "log.report=false", "name=one")
    assert command("stage=post_train", *typed, "trainer.max_steps=1", cwd=tmp_path).code == 0
    run = tmp_path / "runs/one"
    before = content(run)
    assert {".hydra/config.yaml", "run.json", "metrics.jsonl"} <= before.keys()
    for stage in ("stage=post_train", "stage=pipeline"):
        refused = command(stage, *typed, "seed=1", "model.num_heads=4", cwd=tmp_path)
        assert (refused.code, refused.stderr) == (
            2,
            (
                "cosmos-hydra: name=one is a run with another config: model.num_heads: 3 -> 4, "
                "seed: 0 -> 1; choose another name or resume.mode=fresh\n"
            ),
        )
        assert content(run) == before
    allowed = command(
        "stage=post_train", *typed, "trainer.max_steps=2", "optim.lr=0.5", cwd=tmp_path
    )
    assert (allowed.code, allowed.stderr) == (0, "")
    lines = (
        "changed since the run began: optim.lr: 0.001 -> 0.5",
        "changed since the run began: trainer.max_steps: 1 -> 2",
        "resuming step 1/2 of runs/one",
    )
    assert allowed.stdout.startswith("\n".join(lines))
    log = (run / "run.log").read_text()
    assert all(line in log for line in lines)
