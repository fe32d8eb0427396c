"""Cross-checks of the config, in one place and all at once, before any model is built."""

import re
from collections.abc import Iterator
from pathlib import PurePath

from cosmos_hydra.config import (
    Config,
    Linears,
    PeftKind,
    SampleFormat,
    Stage,
    TextEncoderKind,
    TokenizerKind,
    WandbMode,
)
from cosmos_hydra.engines.nemo import limits as nemo
from cosmos_hydra.hub.sources import download_advice
from cosmos_hydra.models.size import adapted_layers, linear_layers
from cosmos_hydra.tracking.wandb import has_wandb_key, wandb_host

SPATIAL_FACTOR = 8  # pixels of a latent cell, both tokenizers
TEMPORAL_FACTOR = 8  # frames of a latent frame after the first
NEMO_TOKENS = 512  # rows of a text embedding in the NeMo data module's files


def settle(config: Config) -> list[str]:
    """Bring values to the nearest legal one where that is harmless; return a message for each."""
    messages = []
    frames = config.data.frames
    if frames > 1 and frames % TEMPORAL_FACTOR != 1:
        legal = (frames - 1) // TEMPORAL_FACTOR * TEMPORAL_FACTOR + 1
        config.data.frames = legal
        messages.append(
            f"data.frames={frames} is not 8k+1: {legal} are used, {frames - legal} dropped"
        )
    if config.trainer.micro_batch_size > config.trainer.global_batch_size:
        config.trainer.micro_batch_size = config.trainer.global_batch_size
    return messages


def check(config: Config) -> list[str]:
    """Return every problem as one line `key=value what is wrong; what would be right`."""
    wrong_axes = list(_axes(config))
    return [
        *_ranges(config),
        *(wrong_axes or _clip(config)),
        *_model(config),
        *_adapters(config),
        *_engine(config),
        *_sources(config),
        *_export(config),
        *_download(config),
    ]


def _ranges(config: Config) -> Iterator[str]:
    at_least_1 = {
        "trainer.max_steps": config.trainer.max_steps,
        "trainer.global_batch_size": config.trainer.global_batch_size,
        "trainer.micro_batch_size": config.trainer.micro_batch_size,
        "trainer.validation_samples": config.trainer.validation_samples,
        "trainer.validation_sigmas": config.trainer.validation_sigmas,
        "peft.rank": config.peft.rank,
        "export.tp": config.export.tp,
        "data.frames": config.data.frames,
        "data.chunks_per_video": config.data.chunks_per_video,
        "data.tokenizer_clips": config.data.tokenizer_clips,
        "data.synthetic.num_videos": config.data.synthetic.num_videos,
        "data.synthetic.frames": config.data.synthetic.frames,
        "preprocess.preview_clips": config.preprocess.preview_clips,
        "generate.videos_per_prompt": config.generate.videos_per_prompt,
        "generate.max_captions": config.generate.max_captions,
        "generate.steps": config.generate.steps,
        "trainer.preview_steps": config.trainer.preview_steps,
        "log.every": config.log.every,
        "model.num_layers": config.model.num_layers,
        "model.num_heads": config.model.num_heads,
        "model.adaln_lora_dim": config.model.adaln_lora_dim,
        "model.text_tokens": config.model.text_tokens,
        "model.text_dim": config.model.text_dim,
        "model.latent_channels": config.model.latent_channels,
    }
    for key, value in at_least_1.items():
        if value < 1:
            yield f"{key}={value} is too small; at least 1"
    at_least_0: dict[str, float] = {
        "trainer.save_every": config.trainer.save_every,
        "trainer.validate_every": config.trainer.validate_every,
        "trainer.preview_every": config.trainer.preview_every,
        "trainer.keep": config.trainer.keep,
        "trainer.max_skipped_steps": config.trainer.max_skipped_steps,
        "parallel.recompute_except": config.parallel.recompute_except,
        "optim.warmup_steps": config.optim.warmup_steps,
        "optim.weight_decay": config.optim.weight_decay,
        "model.objective.given_p_std": config.model.objective.given_p_std,
        "model.objective.given_sigma": config.model.objective.given_sigma,
        "generate.guidance": config.generate.guidance,
    }
    for key, bound in at_least_0.items():
        if bound < 0:
            yield f"{key}={bound} is negative; at least 0"
    above_0 = {
        "optim.lr": config.optim.lr,
        "optim.eps": config.optim.eps,
        "optim.grad_clip": config.optim.grad_clip,
        "peft.alpha": config.peft.alpha,
        "export.shard_gb": config.export.shard_gb,
        "data.fps": config.data.fps,
        "data.synthetic.fps": config.data.synthetic.fps,
        "model.objective.sigma_data": config.model.objective.sigma_data,
        "model.objective.p_std": config.model.objective.p_std,
    }
    for key, limit in above_0.items():
        if limit is not None and not limit > 0:
            yield f"{key}={limit} is not positive; above 0, or null where that is allowed"
    shares = {
        "data.held_out": config.data.held_out,
        "model.objective.text_dropout": config.model.objective.text_dropout,
    }
    for key, share in shares.items():
        if not 0 <= share < 1:
            yield f"{key}={share} is no share; at least 0 and below 1"
    if len(config.optim.betas) != 2 or not all(0 <= beta < 1 for beta in config.optim.betas):
        yield f"optim.betas={config.optim.betas} is wrong; two numbers in [0, 1), like [0.9,0.999]"
    for key, share in {
        "optim.min_lr_ratio": config.optim.min_lr_ratio,
        "data.max_overlap": config.data.max_overlap,
    }.items():
        if not 0 <= share <= 1:
            yield f"{key}={share} is no share; 0 to 1"
    if config.optim.warmup_steps >= config.trainer.max_steps > 0:
        yield (
            f"optim.warmup_steps={config.optim.warmup_steps} is not below "
            f"trainer.max_steps={config.trainer.max_steps}; lower it"
        )


def _axes(config: Config) -> Iterator[str]:
    for key in ("patch_size", "max_size", "rope_scale"):
        sizes = getattr(config.model, key)
        if len(sizes) != 3 or not all(size > 0 for size in sizes):
            yield f"model.{key}={sizes} is wrong; three numbers above 0: time, height, width"


def _clip(config: Config) -> Iterator[str]:
    data, model = config.data, config.model
    for key, size, dim in (("height", data.height, 1), ("width", data.width, 2)):
        step = SPATIAL_FACTOR * model.patch_size[dim]
        if size < step or size % step:
            lower = max(size // step * step, step)
            yield f"data.{key}={size} is no multiple of {step}; use {lower} or {lower + step}"
        elif size // SPATIAL_FACTOR > model.max_size[dim]:
            limit = model.max_size[dim] * SPATIAL_FACTOR
            yield f"data.{key}={size} is more than the model has positions for; at most {limit}"
    latent_frames = 1 + (data.frames - 1) // TEMPORAL_FACTOR
    if latent_frames > model.max_size[0]:
        limit = 1 + (model.max_size[0] - 1) * TEMPORAL_FACTOR
        yield f"data.frames={data.frames} is more than the model has positions for; at most {limit}"


def _model(config: Config) -> Iterator[str]:
    model = config.model
    # the three axes of the rotary embedding each need pairs of channels, at least two pairs
    if model.head_dim < 24 or model.head_dim % 2:
        yield f"model.head_dim={model.head_dim} is too small or odd; even and at least 24"
    stages = config.stages
    trains = Stage.post_train in stages
    yield from _given(config)
    has_weights = model.weights.path or model.weights.from_scratch or config.resume.path
    if trains and not has_weights:
        yield (
            f"model.weights.path=null but model={model.name} is not trained from scratch; "
            f"{download_advice(model, model.weights.repo)}set it to weights of diffusers, the "
            f"original code or NeMo"
        )
    encodes = Stage.preprocess in stages
    if (encodes or Stage.inspect in stages) and not config.data.source:
        yield "data.source=null; set it to the folder of your videos"
    if encodes and config.data.format is SampleFormat.nemo and model.text_tokens != NEMO_TOKENS:
        yield (
            f"data.format=nemo holds texts of {NEMO_TOKENS} tokens but model.text_tokens="
            f"{model.text_tokens}; set model.text_tokens={NEMO_TOKENS}"
        )
    if encodes and model.tokenizer.kind is TokenizerKind.cosmos and not model.tokenizer.path:
        yield (
            f"model.tokenizer.path=null but the cosmos tokenizer needs its weights; "
            f"{download_advice(model, model.tokenizer.repo)}set it to the folder of "
            f"AutoencoderKLCosmos"
        )
    if encodes and model.text_encoder.kind is TextEncoderKind.t5 and not model.text_encoder.path:
        yield (
            f"model.text_encoder.path=null but the t5 text encoder needs its weights; "
            f"{download_advice(model, model.text_encoder.repo)}set it to the folder of the T5 "
            f"encoder"
        )


def _given(config: Config) -> Iterator[str]:
    """Look at what a Video2World model is given."""
    model, data = config.model, config.data
    if not {Stage.post_train, Stage.generate} & set(config.stages):
        return
    key = f"model.objective.given_frames={model.objective.given_frames}"
    if not model.condition_mask:
        if model.objective.given_frames:
            yield (
                f"{key} but model={model.name} is a Text2World model; leave it out, or use a "
                f"Video2World model"
            )
        return
    if not model.objective.given_frames or min(model.objective.given_frames) < 0:
        yield f"{key} is wrong; numbers of latent frames, like [0,1,2]"
        return
    most = max(model.objective.given_frames)
    latent_frames = 1 + (data.frames - 1) // TEMPORAL_FACTOR
    if Stage.post_train in config.stages and most >= latent_frames:
        yield (
            f"{key} leaves nothing to learn of data.frames={data.frames}, {latent_frames} latent "
            f"frames; use data.frames={1 + most * TEMPORAL_FACTOR} or more, or smaller numbers"
        )


def _adapters(config: Config) -> Iterator[str]:
    peft = config.peft
    if peft.kind is PeftKind.none:
        return
    if config.parallel.linears is Linears.float8:
        yield "parallel.linears=float8 does not work with peft=lora; use parallel.linears=default"
    # the same in every block
    names = {re.sub(r"transformer_blocks\.\d+\.", "", name) for name in linear_layers(config.model)}
    advice = f"use some of {', '.join(sorted(names))}"
    if not peft.targets:
        yield f"peft.targets=[] is empty; {advice}"
    for target in peft.targets:
        if not adapted_layers(config.model, [target]):
            yield f"peft.targets={target} names no linear layer; {advice}"


def _engine(config: Config) -> Iterator[str]:
    name = config.engine.name
    if name not in ("torch", "nemo"):
        yield f"engine.name={name} does not exist; use torch or nemo"
    if name == "torch":
        yield from nemo.torch_problems(config)
    elif name == "nemo" and Stage.post_train in config.stages:
        yield from nemo.problems(config)


def _export(config: Config) -> Iterator[str]:
    if Stage.export not in config.stages:
        return
    if config.checkpoint is None:
        yield "checkpoint=null; set it to the run, or the step of a run, to export"
    if config.export.path is None:
        yield "export.path=null; set it to the folder to write"


def _download(config: Config) -> Iterator[str]:
    if Stage.download not in config.stages:
        return
    if config.stage is Stage.pipeline:
        yield "pipeline.stages holds download; run stage=download before the pipeline"
    model = config.model
    weights, tokenizer, texts = model.weights, model.tokenizer, model.text_encoder
    lacking = {
        "weights": not (weights.path or weights.repo or weights.from_scratch),
        "tokenizer": tokenizer.kind is TokenizerKind.cosmos
        and not (tokenizer.path or tokenizer.repo),
        "text_encoder": texts.kind is TextEncoderKind.t5 and not (texts.path or texts.repo),
    }
    for section in (name for name, is_lacking in lacking.items() if is_lacking):
        yield (
            f"model.{section}.repo=null, so stage=download does not know where to find it; set it "
            f"to a repository of the Hugging Face Hub, or set model.{section}.path"
        )


def _sources(config: Config) -> Iterator[str]:
    if not config.name:
        yield "name= is empty; it is the folder of the run below paths.runs"
    if PurePath(config.name).is_absolute() or ".." in PurePath(config.name).parts:
        yield f"name={config.name} leaves paths.runs; choose a plain name, or set paths.runs"
    if Stage.post_train in config.stages and config.log.wandb is WandbMode.online:
        host = wandb_host()
        if not has_wandb_key(host):
            yield (
                f"log.wandb=online but there is no key for {host}; run: wandb login, or set "
                f"WANDB_API_KEY, or log.wandb=offline"
            )
    for key in ("height", "width"):
        size = getattr(config.data.synthetic, key)
        if size < 16 or size % 2:
            yield f"data.synthetic.{key}={size} is too small or odd; even and at least 16"
    if config.stage is Stage.pipeline:
        if not config.pipeline.stages:
            yield "pipeline.stages=[] is empty; for example [preprocess,post_train,generate]"
        if Stage.pipeline in config.pipeline.stages:
            yield "pipeline.stages holds pipeline itself; name the single stages"
    if Stage.generate in config.stages and config.generate.prompt and config.generate.prompt_file:
        yield "generate.prompt and generate.prompt_file are both set; choose one"
