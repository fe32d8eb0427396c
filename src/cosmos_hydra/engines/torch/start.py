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
from cosmos_hydra.config import Config, ResumeMode
from cosmos_hydra.data.clips import TRAIN, latent_shape
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.engines.torch import checkpoint, state
from cosmos_hydra.engines.torch.checkpoint import Checkpoint
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.errors import ConfigError, CosmosError
from cosmos_hydra.models.transformer import initial
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.load import load_weights
from cosmos_hydra.weights.locate import Located, locate

# a resumed run must not differ in these; samples and given weights are compared by content
FIXED = ("model.", "seed", "trainer.global_batch_size", "optim.betas", "optim.eps")
MOVABLE = (
    "model.weights.",
    "model.tokenizer.path",
    "model.text_encoder.path",
    "model.default_lr",
    "model.default_guidance",
)
# what else has a part in training may change, and is logged
LOGGED = ("engine.", "model.", "optim.", "parallel.", "resume.path", "trainer.")
GIVEN = ("resume.path", "model.weights.path")  # weights to start from, the first that is set
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A checkpoint of this run to go on from, or other weights, or neither: random ones."""

    checkpoint: Checkpoint | None = None
    weights: Located | None = None


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
        return Start(checkpoint=found)
    given = _given(schema.to_dict(config))
    if given is None:
        return Start()
    key, path = given
    weights = locate(path, key)
    diffusers.check_config(weights.transformer, config.model, key)
    return Start(weights=weights)


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
    if start.checkpoint is not None:
        table = state.table_of(transformer, optimizer)
        state.read_into(table, start.checkpoint.state, ranks.cpu_group)
        return start.checkpoint.step
    if start.weights is not None:
        load_weights(transformer, start.weights, ranks.cpu_group)
        logger.info(f"starting from {start.weights} (sha256 {start.weights.digest[:12]})")
    else:
        state.fill_shards(transformer, lambda name, shape: initial(name, shape, config.seed))
        logger.info("starting from random weights")
    return 0


def _given(values: dict[str, Any]) -> tuple[str, str] | None:
    """Return key and path of the weights that a config starts from, if it names any."""
    paths = flat(values)
    return next(((key, paths[key]) for key in GIVEN if paths[key]), None)


def check_unchanged(config: Config, manifest: dict[str, Any], store: SampleStore) -> None:
    """Refuse to go on from a checkpoint as another run than it was; log what may change.

    Raises: ConfigError with every difference.
    """
    before, now = manifest["config"], schema.to_dict(config)
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
