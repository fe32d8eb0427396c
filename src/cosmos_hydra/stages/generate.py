"""generate: prompts to videos, from a run, one of its steps, or a diffusers folder."""

import logging
from contextlib import ExitStack
from pathlib import Path

from cosmos_hydra import files, runs
from cosmos_hydra.claim import claim
from cosmos_hydra.config import Config, Stage
from cosmos_hydra.engines.torch.device import pick_device
from cosmos_hydra.engines.torch.fit import check_memory
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.job import Job, command_line
from cosmos_hydra.sampling.requests import adopt, collect_prompts, plan_videos
from cosmos_hydra.sampling.videos import common_facts, make_videos
from cosmos_hydra.tracking import metrics
from cosmos_hydra.tracking.pictures import draw_overview
from cosmos_hydra.tracking.report import write_report
from cosmos_hydra.weights.locate import locate

logger = logging.getLogger(__name__)


def run(config: Config, job: Job) -> list[Path]:
    """Make the videos that are not there yet and return the paths of all."""
    is_own_folder = config.stage is Stage.generate and bool(
        config.checkpoint or config.generate.out
    )
    run = Path(config.paths.runs).expanduser() / config.name if is_own_folder else job.directory
    if config.checkpoint is None and not runs.steps(run):
        raise ConfigError("checkpoint=null; set it to a run, a step of a run or a diffusers folder")
    weights = locate(config.checkpoint or str(run), "checkpoint")
    config = adopt(config, job.typed, weights)
    prompts = collect_prompts(config, weights)
    device = pick_device(config.engine.device)
    check_memory(config, device, Stage.generate, can_change_clip=weights.checkpoint is None)
    videos_below = job.directory if is_own_folder else job.directory / "videos"
    out = Path(config.generate.out or videos_below).expanduser()
    common = common_facts(config, weights, device)
    videos = plan_videos(config, job, prompts, weights, common, out)
    data, count = config.data, len(videos)
    logger.info(
        f"generating with {weights} (sha256 {weights.digest[:12]}) on {device}: "
        f"{count} video{'s' * (count != 1)} of "
        f"{data.frames} frames at {data.height}x{data.width}, {config.generate.steps} steps each, "
        f"into {out}"
    )
    if is_own_folder:
        job.begin()
    with ExitStack() as stack:
        if out.resolve() != job.directory.resolve():  # which is ours already
            stack.enter_context(claim(out / files.LOCK, str(out)))
        files.remove_leftovers(out)
        paths = make_videos(config, weights, videos, out, device)
    for path in paths:
        logger.info(f"video: {path}")
    logger.info(f"picture: {out / 'contact_sheet.png'}")
    if out == job.directory / "videos":
        rows = metrics.read(job.directory / "metrics.jsonl")
        logger.info(f"picture: {draw_overview(job.directory, rows)}")
    trained = runs.run_of(weights.checkpoint.folder) if weights.checkpoint else None
    if config.log.report and trained and out.resolve() == (trained / "videos").resolve():
        logger.info(f"report: {write_report(trained, config)}")
    if config.stage is Stage.pipeline:
        typed = ("stage=generate", f"checkpoint={run}", "generate.prompt=What to show")
        logger.info(f"next: {command_line(*typed)}")
    return paths
