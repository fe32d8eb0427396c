"""generate: prompts to videos, from a run, one of its steps, or a diffusers folder."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from cosmos_hydra import files, runs
from cosmos_hydra.claim import claim
from cosmos_hydra.config import Config, Stage
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.fit import check_memory
from cosmos_hydra.engines.torch.team import gather_team
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.job import Job, command_line
from cosmos_hydra.sampling.inputs import Input, find_input
from cosmos_hydra.sampling.requests import Video, adopt, collect_prompts, plan_videos
from cosmos_hydra.sampling.videos import common_facts, make_videos
from cosmos_hydra.tracking import metrics
from cosmos_hydra.tracking.pictures import draw_overview
from cosmos_hydra.tracking.report import write_report
from cosmos_hydra.weights.locate import Located, locate

logger = logging.getLogger(__name__)


@dataclass
class Plan:
    """What is to be made from what, as rank 0 has found it."""

    # with the checkpoint's model and clip
    config: Config
    weights: Located
    videos: list[Video]
    # what a Video2World model goes on from
    given: Input | None
    out: Path
    # the run that can be generated from
    run: Path


def run(config: Config, job: Job) -> list[Path]:
    """Make the videos that are not there yet and return the paths of all; every rank takes part."""
    device = pick_device(config.engine.device)
    team = gather_team(device)
    with ExitStack() as stack:
        plan = team.decide(lambda: _plan(config, job, device, stack))
        paths = make_videos(
            plan.config, plan.weights, plan.videos, plan.out, device, team, plan.given
        )
    if team.is_first:
        _conclude(plan, job, paths)
    return paths


def _plan(config: Config, job: Job, device: torch.device, stack: ExitStack) -> Plan:
    is_own_folder = config.stage is Stage.generate and bool(
        config.checkpoint or config.generate.out
    )
    run = Path(config.paths.runs).expanduser() / config.name if is_own_folder else job.directory
    if config.checkpoint is None and not runs.steps(run):
        raise ConfigError("checkpoint=null; set it to a run, a step of a run or a diffusers folder")
    weights = locate(config.checkpoint or str(run), "checkpoint")
    config = adopt(config, job.typed, weights)
    prompts = collect_prompts(config, weights)
    check_memory(config, device, Stage.generate, can_change_clip=weights.checkpoint is None)
    videos_below = job.directory if is_own_folder else job.directory / "videos"
    out = Path(config.generate.out or videos_below).expanduser()
    given = find_input(config)
    common = common_facts(config, weights, device)
    if given:
        common["given"] = given.facts(config)
    videos = plan_videos(config, job, prompts, weights, common, out)
    data, count = config.data, len(videos)
    logger.info(
        f"generating with {weights} (sha256 {weights.digest[:12]}) on {device}: "
        f"{count} video{'s' * (count != 1)} of "
        f"{data.frames} frames at {data.height}x{data.width}, {config.generate.steps} steps each, "
        f"into {out}"
    )
    if given:
        logger.info(f"given: {given}")
    elif config.model.condition_mask:
        logger.info("given: nothing but text; generate.input= takes a picture or a video")
    if is_own_folder:
        job.begin()
    if out.resolve() != job.directory.resolve():  # which is ours already
        stack.enter_context(claim(out / files.LOCK, str(out)))
    files.remove_leftovers(out)
    return Plan(config, weights, videos, given, out, run)


def _conclude(plan: Plan, job: Job, paths: list[Path]) -> None:
    """Say what has been made, and draw what shows it."""
    config, out = plan.config, plan.out
    for path in paths:
        logger.info(f"video: {path}")
    logger.info(f"picture: {out / 'contact_sheet.png'}")
    if out == job.directory / "videos":
        rows = metrics.read(job.directory / "metrics.jsonl")
        logger.info(f"picture: {draw_overview(job.directory, rows)}")
    checkpoint = plan.weights.checkpoint
    trained = runs.run_of(checkpoint.folder) if checkpoint else None
    if config.log.report and trained and out.resolve() == (trained / "videos").resolve():
        logger.info(f"report: {write_report(trained, config)}")
    if config.stage is Stage.pipeline:
        typed = ("stage=generate", f"checkpoint={plan.run}", "generate.prompt=What to show")
        logger.info(f"next: {command_line(*typed)}")
