"""download: what a config needs from the Hugging Face Hub, into its ordinary cache."""

import logging
from pathlib import Path

from huggingface_hub import constants

from cosmos_hydra.claim import claim
from cosmos_hydra.config import Config, ModelConfig
from cosmos_hydra.errors import StageError
from cosmos_hydra.hub.access import Repository, disk_problem, summary, survey, table
from cosmos_hydra.hub.cache import Record, converted_folder, find, home, read_record
from cosmos_hydra.hub.fetch import fetch, verify
from cosmos_hydra.hub.sources import T5_BIN, VIDEOS, Part, model_parts, parts_of
from cosmos_hydra.job import Job, command_line

# what the released models make
RELEASED_CLIP = ("data.frames=121", "data.height=704", "data.width=1280")
logger = logging.getLogger(__name__)


def run(config: Config, job: Job) -> dict[str, Path]:
    """Fetch what is missing, verify it, and return where each part lies.

    Raises: StageError with a line for each repository that is closed, before anything is fetched.
    """
    parts = parts_of(config)
    if not parts:
        logger.info(f"model={config.model.name}: nothing to download")
        return {}
    if config.download.check:
        _survey(parts)
        logger.info("download.check=true: nothing was fetched")
        return {}
    with claim(home() / ".lock", f"HF_HOME={constants.HF_HOME}"):
        if config.download.verify:
            for record in _records(parts):
                verify(record)
        repositories = _survey(parts)
        fetch(repositories)
        for part in parts:
            _convert(part)
    for one in repositories:
        logger.info(summary(one))
    places = _places(parts)
    next_command = _next(config.model, places)
    if next_command:
        logger.info(f"next: {next_command}")
    return places


def _records(parts: list[Part]) -> list[Record]:
    """Return what is known of the repositories of some parts, each once."""
    found = {(part.kind, part.repo, part.revision): read_record(part) for part in parts}
    return [record for record in found.values() if record is not None]


def _survey(parts: list[Part]) -> list[Repository]:
    """Show the table and return its rows. Raises: StageError when not all can be fetched."""
    repositories = survey(parts)
    for line in table(repositories):
        logger.info(line)
    problems = [one.problem for one in repositories if one.problem]
    problems = problems or list(filter(None, [disk_problem(repositories)]))
    if problems:
        raise StageError("\n".join(problems))
    return repositories


def _convert(part: Part) -> None:
    """Bring T5 of the one kind of repository that has no safetensors into a form that is loaded."""
    record = read_record(part)
    if record is not None and part.layout_of(record.parts.get(part.name, [])) is T5_BIN:
        folder = converted_folder(record)
        if not folder.is_dir():
            from cosmos_hydra.hub.t5 import convert  # torch, which nothing else here needs

            convert(record.snapshot, folder)


def _places(parts: list[Part]) -> dict[str, Path]:
    """Show and return where each part lies."""
    places = {}
    for part in parts:
        place = find(part)
        assert place is not None
        places[part.name] = place
        logger.info(f"{part.name}: {place}")
    return places


def _next(model: ModelConfig, places: dict[str, Path]) -> str:
    """Return what can be done now: samples of the guide's videos, or a video with the weights."""
    if VIDEOS in places:
        named = f"model={model.name}"
        return command_line(
            "stage=preprocess", named, "data=robot", f"data.source={places[VIDEOS]}"
        )
    weights = model_parts(model).get("weights")
    if weights is None:
        return ""
    given = ("generate.input=first.png",) if model.condition_mask else ()
    return command_line(
        *("stage=generate", f"model={model.name}", f"checkpoint={places[weights.name]}"),
        *RELEASED_CLIP,
        *given,
        "generate.prompt=What to show",
    )
