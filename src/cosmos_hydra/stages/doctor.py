"""doctor: is this machine ready, and if not, what to type. One line a check, below 20 seconds."""

import logging
from collections import defaultdict
from functools import partial

from cosmos_hydra.config import Config
from cosmos_hydra.doctor import accounts, gpu, machine, packages, videos
from cosmos_hydra.doctor.findings import Check, Level, examine, lines
from cosmos_hydra.errors import StageError
from cosmos_hydra.job import Job

CHECKS = (
    Check("python", packages.python),
    Check("packages", packages.others),
    Check("torch", packages.torch),
    Check("gpu", gpu.gpu, needs=("torch",)),
    Check("decord", videos.decoding, needs=("packages", "torch")),
    Check("diffusers", packages.diffusers, needs=("packages", "torch")),
    Check("transformers", packages.transformers, needs=("packages", "torch")),
    Check("memory", machine.memory),
    Check("paths.runs", partial(machine.folder, key="paths.runs")),
    Check("paths.samples", partial(machine.folder, key="paths.samples")),
    Check("data.path", partial(machine.folder, key="data.path")),
    Check("data.source", videos.source, needs=("packages", "torch", "decord")),
    Check("HF cache", machine.hub_cache, needs=("packages",)),
    Check("HF token", accounts.hub, needs=("packages",)),
    Check("weights", accounts.weights, needs=("packages",)),
    Check("wandb", accounts.wandb),
    Check("slurm", machine.slurm),
)
logger = logging.getLogger(__name__)


def run(config: Config, job: Job) -> None:
    """Print what every check finds.

    Raises: StageError when something has to be fixed.
    """
    topics = defaultdict(list)
    for topic, finding in examine(CHECKS, config):
        topics[finding.level].append(topic)
        for line in lines(topic, finding):
            logger.info(line)
    to_fix, warnings = topics[Level.FIX], len(topics[Level.WARN])
    counted = f"{warnings} warning{'s' if warnings != 1 else ''}"
    left_out = len(CHECKS) - sum(map(len, topics.values()))
    if to_fix:
        waiting = f"; {left_out} more to check after that" if left_out else ""
        logger.info(f"{len(to_fix)} to fix, {counted}{waiting}")
        raise StageError(f"stage=doctor found something to fix: {', '.join(to_fix)}")
    verdict = f"nothing to fix, {counted}" if warnings else "everything is in order"
    logger.info(f"{verdict}; try: cosmos-hydra experiment=quickstart")
