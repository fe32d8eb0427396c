"""Where a run begins: at its own newest checkpoint, from given weights, or at random.

`plan_start` decides and checks before a model is built; `fill` then loads.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cosmos_hydra import config as schema
from cosmos_hydra.changes import difference, flat
from cosmos_hydra.config import Config, PeftKind, ResumeMode
from cosmos_hydra.data.clips import TRAIN, latent_shape
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.engines.torch import checkpoint, state
from cosmos_hydra.engines.torch.checkpoint import Checkpoint
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.errors import ConfigError, CosmosError
from cosmos_hydra.models.lora import initial_adapter, named_adapters
from cosmos_hydra.models.transformer import initial
from cosmos_hydra.weights.base import base_facts, base_of
from cosmos_hydra.weights.load import load_weights
from cosmos_hydra.weights.locate import Located, locate
from cosmos_hydra.weights.open import check_architecture

# what says where a model lies
FOUND_BY = ("path", "repo", "revision")
# a resumed run must not differ in these; samples and given weights are compared by content
FIXED = (
    *("model.", "peft.", "seed", "engine.name"),
    *("trainer.global_batch_size", "optim.betas", "optim.eps"),
)
MOVABLE = (
    "model.weights.",
    *(f"model.{part}.{k}" for part in ("tokenizer", "text_encoder") for k in FOUND_BY),
    "model.default_lr",
    "model.default_guidance",
)
# what else has a part in training may change, and is logged
LOGGED = ("engine.", "model.", "optim.", "parallel.", "resume.path", "trainer.")
GIVEN = ("resume.path", "model.weights.path")  # weights to start from, the first that is set
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A checkpoint of this run to go on from, or other weights, or neither: random ones.

    A checkpoint of adapters comes with the weights that these belong to.
    """

    # for manifests: what the run began with
    base: dict[str, Any] | None
    checkpoint: Checkpoint | None = None
    weights: Located | None = None
    # key and path of the weights that step 0 has, if they are given
    given: str | None = None


def check_samples(config: Config, store: SampleStore) -> float:
    """Return the fps of the first sample.

    Raises: ConfigError when the samples are not those of the configured clip and encoders.
    """
    data, model = config.data, config.model
    sample = store.load(store.splits[TRAIN][0])
    channels, frames, height, width = sample.latent_CFHW.shape
    text_tokens, text_dim = sample.text_TD.shape
    problems = []
    for name in ("tokenizer", "text_encoder"):
        # a folder of NVIDIA's guide does not say what made it
        made_with = (store.manifest.get(name) or {}).get("kind")
        kind = getattr(model, name).kind.name
        if made_with not in (None, kind):
            problems.append(
                f"data.path={data.path} was made with the {made_with} {name}, not "
                f"model.{name}.kind={kind}; preprocess again into another data.path"
            )
    numbers = {
        "model.latent_channels": (channels, model.latent_channels),
        "model.text_tokens": (text_tokens, model.text_tokens),
        "model.text_dim": (text_dim, model.text_dim),
    }
    problems += [
        f"data.path={data.path} holds samples of {key}={found}, not {wanted}; "
        f"preprocess again into another data.path"
        for key, (found, wanted) in numbers.items()
        if found != wanted
    ]
    if (frames, height, width) != latent_shape(data, channels)[1:]:
        problems.append(
            f"data.path={data.path} holds clips of {1 + 8 * (frames - 1)} frames at "
            f"{8 * height}x{8 * width}, not data.frames={data.frames} "
            f"data.height={data.height} data.width={data.width}; "
            f"set these to the samples' numbers"
        )
    if problems:
        raise ConfigError(*problems)
    return sample.fps


def plan_start(config: Config, run: Path, store: SampleStore) -> Start:
    """Return where the run begins.

    Raises: ConfigError when an existing run has another config, or must not exist, or when given
    weights are of another architecture; StageError when they cannot be read.
    """
    found = checkpoint.newest(run)
    if found is not None:
        if config.resume.mode is ResumeMode.never:
            raise ConfigError(
                f"resume.mode=never but {run} holds step {found.step}; "
                f"choose another name or resume.mode=auto"
            )
        check_unchanged(config, found.manifest, store)
        logger.info(f"resuming step {found.step}/{config.trainer.max_steps} of {run}")
        if found.peft is None:
            return Start(found.manifest.get("base"), found)
        base = base_of(found, config.resume.path or config.model.weights.path)
        weights = base if isinstance(base, Located) else None
        return Start(base_facts(weights, config.seed), found, weights)
    given = _given(schema.to_dict(config))
    if given is None:
        return Start(base_facts(None, config.seed))
    key, path = given
    weights = locate(path, key)
    check_architecture(weights, config.model, key)
    return Start(base_facts(weights, config.seed), weights=weights, given=f"{key}={path}")


def fill(
    start: Start,
    config: Config,
    transformer: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
) -> int:
    """Fill weights and optimizer state, or this rank's parts of them; return the step they are of.

    Raises: StageError when they do not fit the model.
    """
    state.make_moments(transformer, optimizer, config.optim.state)
    has_adapters = config.peft.kind is not PeftKind.none
    if start.checkpoint is None or has_adapters:
        _fill_weights(start, config, transformer, ranks)
    if start.checkpoint is not None:
        table = state.table_of(transformer, optimizer)
        state.read_into(table, start.checkpoint.state, ranks.cpu_group)
        return start.checkpoint.step
    for name, parameter in named_adapters(transformer):
        state.fill_part(parameter, initial_adapter(name, parameter.shape, config.seed))
    return 0


def _fill_weights(start: Start, config: Config, transformer: nn.Module, ranks: Ranks) -> None:
    what = "adapters of" if start.checkpoint else "starting from"
    if start.weights is not None:
        load_weights(transformer, start.weights, ranks.cpu_group, config.model.weights.path)
        logger.info(f"{what} {start.weights} (sha256 {start.weights.digest[:12]})")
    else:
        state.fill_shards(transformer, lambda name, shape: initial(name, shape, config.seed))
        logger.info(f"{what} random weights")
        if config.peft.kind is not PeftKind.none:
            logger.warning(
                "peft=lora on random weights learns nothing: the output projection is zero and "
                "stays so; set resume.path or model.weights.path"
            )


def _given(values: dict[str, Any]) -> tuple[str, str] | None:
    """Return key and path of the weights that a config starts from, if it names any."""
    paths = flat(values)
    return next(((key, paths[key]) for key in GIVEN if paths[key]), None)


def check_unchanged(config: Config, manifest: dict[str, Any], store: SampleStore) -> None:
    """Refuse to go on from a checkpoint as another run than it was; log what may change.

    Raises: ConfigError with every difference.
    """
    # as a config of this program: keys may have been added since
    before = schema.to_dict(schema.from_dict(manifest["config"]))
    now = schema.to_dict(config)
    changes = difference(before, now)
    unsafe = [c for c in changes if c.startswith(FIXED) and not c.startswith(MOVABLE)]
    if _names_other_weights(before, now):
        unsafe += [change for change in changes if change.startswith(GIVEN)]
    if manifest["data"] != store.content_hash:
        unsafe.append("the samples in data.path")
    if unsafe:
        raise ConfigError(
            f"name={config.name} is a run with another config: {', '.join(unsafe)}; "
            f"choose another name or resume.mode=fresh"
        )
    for change in changes:
        if change.startswith(LOGGED):
            logger.info(f"changed since the run began: {change}")


def _names_other_weights(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether a run is asked to start from weights that it did not start from."""
    old, new = _given(before), _given(now)
    if new is None or new == old:
        return False
    if old is None:
        return True
    try:
        began_with = locate(old[1], old[0])
    except CosmosError:
        return False  # no longer there: moved
    return began_with.digest != locate(new[1], new[0]).digest
