"""What a generate command asks for: its config, its prompts, and a name for every video."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_hydra import config as schema
from cosmos_hydra import files
from cosmos_hydra.changes import flat
from cosmos_hydra.config import Config
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.hub.cache import fill_paths
from cosmos_hydra.job import Job
from cosmos_hydra.overrides import as_typed
from cosmos_hydra.weights.locate import Located
from cosmos_hydra.weights.open import check_architecture

CLIP_KEYS = ("data.frames", "data.height", "data.width", "data.fps")
# where weights lie may differ between machines; what they are is compared by hash
PLACES = ("model.weights.path", "model.tokenizer.path", "model.text_encoder.path")
NEGLIGIBLE = (*PLACES, "model.default_lr", "model.default_guidance", "model.weights.from_scratch")
FOREIGN_FPS = 24.0  # the released models' base rate


def adopt(config: Config, typed: set[str], weights: Located) -> Config:
    """Return the config to generate with: model and clip of the checkpoint, the rest as typed.

    Raises: ConfigError when the user typed a model or clip that is not the checkpoint's.
    """
    if weights.checkpoint is None:
        check_architecture(weights, config.model, "checkpoint")
        config.data.fps = config.data.fps or FOREIGN_FPS
        return config
    trained = schema.from_dict(weights.checkpoint.manifest["config"])
    trained.data.fps = weights.checkpoint.manifest["fps"]
    ours, theirs = flat(schema.to_dict(config)), flat(schema.to_dict(trained))
    problems = [
        f"{key}={ours[key]} but the checkpoint has {theirs[key]}; leave it out"
        for key in _claimed(typed, list(theirs))
        if ours[key] != theirs[key]
    ]
    if problems:
        raise ConfigError(*problems)
    gone = {}
    for key in PLACES:
        section = getattr(trained.model, key.split(".")[1])
        if key in typed:
            section.path = ours[key]
        elif section.path and not Path(section.path).expanduser().exists():
            gone[key], section.path = section.path, None  # as it was on another machine
    # weights are in the checkpoint, unless it has only adapters
    fill_paths(trained.model, with_weights=weights.checkpoint.peft is not None)
    for key, path in gone.items():
        section = getattr(trained.model, key.split(".")[1])
        section.path = section.path or path
    generate = config.generate
    if "generate.guidance" not in typed:
        generate.guidance = trained.model.default_guidance
    trained.stage, trained.checkpoint, trained.generate = config.stage, config.checkpoint, generate
    trained.engine, trained.parallel, trained.log = config.engine, config.parallel, config.log
    return trained


def _claimed(typed: set[str], known: list[str]) -> list[str]:
    """Return the model and clip keys that the typed keys and groups fix."""
    groups = typed & {"model", "data", "experiment"}
    by_group = {"model": [k for k in known if k.startswith("model.")], "data": list(CLIP_KEYS)}
    by_group["experiment"] = by_group["model"] + by_group["data"]
    claimed = {key for group in groups for key in by_group[group]}
    claimed |= {key for key in typed if key in known and key.startswith("model.")}
    claimed |= typed & set(CLIP_KEYS)
    # a null fps means the rate of the recording, which the checkpoint knows
    return sorted(k for k in claimed - set(NEGLIGIBLE) if k != "data.fps" or k in typed)


def collect_prompts(config: Config, weights: Located) -> list[str]:
    """Return the prompts: typed, from a file, or the captions the checkpoint was trained on.

    Raises: ConfigError when there are none.
    """
    generate = config.generate
    if generate.prompt:
        return [generate.prompt]
    if generate.prompt_file:
        file = Path(generate.prompt_file).expanduser()
        if not file.is_file():
            raise ConfigError(f"generate.prompt_file={file} is no file; one prompt a line")
        prompts = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        if not prompts:
            raise ConfigError(f"generate.prompt_file={file} is empty; one prompt a line")
        return prompts
    captions = weights.checkpoint.manifest["captions"] if weights.checkpoint else []
    captions = [caption for caption in captions if caption]
    if not captions:
        raise ConfigError("generate.prompt=null and the weights name no captions; set a prompt")
    # spread over the list, whose neighbours are alike
    count = min(generate.max_captions, len(captions))
    last = max(1, count - 1)
    return [captions[round(index * (len(captions) - 1) / last)] for index in range(count)]


@dataclass(frozen=True)
class Video:
    """One video to make. `facts` decide its content; equal facts give equal bytes."""

    prompt: str
    seed: int
    facts: dict[str, Any]
    command: str

    @property
    def stem(self) -> str:
        """Return the file name without suffix: readable, and different for different facts."""
        words = re.sub(r"[^a-z0-9]+", "-", self.prompt.lower()).strip("-")[:48].strip("-")
        return f"{words or 'video'}_seed{self.seed}_{files.sha256_of_json(self.facts)[:6]}"


def plan_videos(
    config: Config,
    job: Job,
    prompts: list[str],
    weights: Located,
    common: dict[str, Any],
    out: Path,
) -> list[Video]:
    """Return the videos of all prompts and seeds; `common` are the facts they share."""
    generate, data = config.generate, config.data
    videos = []
    for prompt in prompts:
        for seed in range(generate.seed, generate.seed + generate.videos_per_prompt):
            facts = {
                "prompt": prompt,
                "negative_prompt": generate.negative_prompt,
                "seed": seed,
                "steps": generate.steps,
                "guidance": generate.guidance,
                "sampler": generate.sampler.name,
                "frames": data.frames,
                "height": data.height,
                "width": data.width,
                "fps": data.fps,
                **common,
            }
            videos.append(Video(prompt, seed, facts, _command(config, job, weights, facts, out)))
    return videos


def _command(config: Config, job: Job, weights: Located, facts: dict[str, Any], out: Path) -> str:
    """Return the command line that makes this one video again."""
    parts = ["cosmos-hydra", "stage=generate", f"checkpoint={weights.path}", f"generate.out={out}"]
    if weights.checkpoint is None:
        # a foreign folder names no model: what was typed about it is part of the request
        keys = ((override.partition("=")[0], override) for override in job.overrides)
        parts += [
            override
            for key, override in keys
            if key in ("model", "experiment") or (key.startswith("model.") and key not in PLACES)
        ]
        parts += [f"data.{key}={facts[key]}" for key in ("frames", "height", "width", "fps")]
    for section in ("tokenizer", "text_encoder"):
        path = getattr(config.model, section).path
        if path:
            parts.append(f"model.{section}.path={path}")
    for key in ("prompt", "negative_prompt", "seed", "steps", "guidance", "sampler"):
        value = facts[key]
        if value is not None:
            parts.append(f"generate.{key}={as_typed(value) if isinstance(value, str) else value}")
    if config.generate.input is not None:
        parts.append(f"generate.input={config.generate.input}")
        parts.append(f"generate.input_frames={len(facts['given']['frames'])}")
    parts.append(f"generate.compile={str(facts['compiled']).lower()}")
    parts += [f"engine.device={facts['device']}", f"parallel.precision={facts['precision']}"]
    return shlex.join(parts)
