"""The schema of every config key; values live in `conf/`.

OmegaConf checks types and names against these classes, `load` turns the result into plain
objects, and nothing past `main.py` sees OmegaConf. Cross-checks are in `checks.py`.
The comment above a field is its documentation: meaning, unit, special values.
"""

import re
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class Choice(Enum):
    """A closed list of values; its text is the name, also inside an interpolation."""

    def __str__(self) -> str:
        return self.name


class Stage(Choice):
    download = "download"
    preprocess = "preprocess"
    post_train = "post_train"
    generate = "generate"
    pipeline = "pipeline"
    report = "report"
    inspect = "inspect"
    plan = "plan"
    doctor = "doctor"
    export = "export"


class PlannedGpu(Choice):
    h200 = "h200"
    h100 = "h100"
    a100 = "a100"


class SourceKind(Choice):
    synthetic = "synthetic"
    folder = "folder"
    bridge = "bridge"
    lerobot = "lerobot"


class Fit(Choice):
    crop = "crop"
    pad = "pad"
    stretch = "stretch"


class SampleFormat(Choice):
    safetensors = "safetensors"
    nemo = "nemo"


class WeightsFormat(Choice):
    diffusers = "diffusers"
    original = "original"
    nemo = "nemo"


class TokenizerKind(Choice):
    toy = "toy"
    cosmos = "cosmos"


class TextEncoderKind(Choice):
    hash = "hash"
    t5 = "t5"


class PeftKind(Choice):
    none = "none"
    lora = "lora"


class Precision(Choice):
    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


class Linears(Choice):
    default = "default"
    float8 = "float8"


class Recompute(Choice):
    none = "none"
    save_matmul = "save_matmul"
    save_mlp = "save_mlp"
    save_attention = "save_attention"
    full = "full"


class Attention(Choice):
    auto = "auto"
    flash4 = "flash4"
    cudnn = "cudnn"
    flash = "flash"
    efficient = "efficient"
    math = "math"


class Fp8(Choice):
    none = "none"
    delayed = "delayed"
    tensorwise = "tensorwise"


class StatePrecision(Choice):
    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


class Schedule(Choice):
    constant = "constant"
    cosine = "cosine"


class Sampler(Choice):
    res_2ab = "res_2ab"
    euler = "euler"


class ExportFormat(Choice):
    diffusers = "diffusers"
    original = "original"
    nemo = "nemo"


class ExportDtype(Choice):
    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


class Extra(Choice):
    guardrail = "guardrail"
    prompt_upsampler = "prompt_upsampler"


class ResumeMode(Choice):
    auto = "auto"
    fresh = "fresh"
    never = "never"


class WandbMode(Choice):
    off = "off"
    offline = "offline"
    online = "online"


@dataclass
class PathsConfig:
    # folder of run directories
    runs: str = "runs"
    # folder of processed samples, one folder a data set
    samples: str = "samples"


@dataclass
class WeightsConfig:
    # weights to start from, in any format that resume.path takes; null = those of `repo`
    path: str | None = None
    # repository on the Hugging Face Hub that has them; null = none
    repo: str | None = None
    # branch, tag or commit of `repo`
    revision: str = "main"
    # what stage=download fetches of `repo`: diffusers = transformer/, safetensors; original =
    # model.pt; nemo = nemo/, as the NeMo Framework reads it
    format: WeightsFormat = WeightsFormat.diffusers
    # true = random weights when there is no path; the released sizes refuse that
    from_scratch: bool = False


@dataclass
class TokenizerConfig:
    # toy = linear transform fitted on the data; cosmos = AutoencoderKLCosmos
    kind: TokenizerKind = TokenizerKind.cosmos
    # folder of AutoencoderKLCosmos in diffusers layout; null = that of `repo`; unused by toy
    path: str | None = None
    # repository on the Hugging Face Hub that has it in a folder vae/; null = none
    repo: str | None = None
    # branch, tag or commit of `repo`
    revision: str = "main"


@dataclass
class TextEncoderConfig:
    # hash = seeded embedding of words; t5 = T5 encoder
    kind: TextEncoderKind = TextEncoderKind.t5
    # folder of the T5 encoder and its tokenizer in transformers layout; null = that of `repo`;
    # unused by hash
    path: str | None = None
    # repository on the Hugging Face Hub that has them, in folders text_encoder/ and tokenizer/ or
    # at its top; null = none
    repo: str | None = None
    # branch, tag or commit of `repo`
    revision: str = "main"


@dataclass
class ObjectiveConfig:
    # standard deviation the clean latents are scaled to
    sigma_data: float = 0.5
    # mean of ln(sigma) in training
    p_mean: float = 0.0
    # standard deviation of ln(sigma) in training
    p_std: float = 1.0
    # share of training samples whose text is replaced by zeros, in [0, 1)
    text_dropout: float = 0.2
    # Video2World: numbers of latent frames that may be given, one of which is drawn for each sample
    # of a step; 0 = none, 1 = the first frame of the clip, 2 = the first 9, then 8 more each;
    # [] = Text2World
    given_frames: list[int] = field(default_factory=list)
    # mean of ln(sigma) of the noise on given frames in training
    given_p_mean: float = -3.0
    # standard deviation of ln(sigma) of the noise on given frames in training
    given_p_std: float = 2.0
    # sigma of the noise on given frames in validation, previews and generation
    given_sigma: float = 0.001


@dataclass
class ModelConfig:
    # name of the model; part of the default run name
    name: str = MISSING
    # transformer blocks
    num_layers: int = MISSING
    # attention heads; width of the model = num_heads * head_dim
    num_heads: int = MISSING
    # channels of one head, even
    head_dim: int = MISSING
    # hidden width of the MLP over the width of the model
    mlp_ratio: float = 4.0
    # rank of the adaLN-LoRA modulation
    adaln_lora_dim: int = MISSING
    # tokens of a text embedding, longer captions are cut with a warning
    text_tokens: int = 512
    # channels of a text embedding
    text_dim: int = 1024
    # channels of the tokenizer's latent
    latent_channels: int = 16
    # true = one more input channel, which marks given frames (Video2World); see given_frames
    condition_mask: bool = False
    # largest latent, [frames, height, width]
    max_size: list[int] = field(default_factory=lambda: [128, 240, 240])
    # latent cells of one token, [frames, height, width]
    patch_size: list[int] = field(default_factory=lambda: [1, 2, 2])
    # rotary position scale, [frames, height, width]
    rope_scale: list[float] = MISSING
    # learning rate of optim.lr unless that is set
    default_lr: float = MISSING
    # guidance of generate.guidance unless that is set
    default_guidance: float = MISSING
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)


@dataclass
class PeftConfig:
    # none = all weights are trained; lora = low-rank matrices added to frozen ones (peft library)
    kind: PeftKind = PeftKind.none
    # rank of an added matrix B @ A
    rank: int = 16
    # its factor is alpha / rank
    alpha: float = 16.0
    # linear layers that get one: names in the transformer, or how they end
    targets: list[str] = field(
        default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    )


@dataclass
class SyntheticConfig:
    # videos to render; each shows one view of one motion
    num_videos: int = 32
    # cameras to render from, in turn: front, left, right, above
    views: list[str] = field(default_factory=lambda: ["front", "left", "right", "above"])
    # what the arm does, in turn: wave, reach, lift, turn
    motions: list[str] = field(default_factory=lambda: ["wave", "reach", "lift", "turn"])
    # frames of a video
    frames: int = 49
    # frames per second of a video
    fps: float = 24.0
    # picture height of a video, pixels
    height: int = 96
    # picture width of a video, pixels
    width: int = 128


@dataclass
class DataConfig:
    # name of the data set; part of the default run name and samples folder
    name: str = MISSING
    # synthetic = rendered robot arm; folder = videos found below data.source; bridge = BridgeData
    # videos and annotations; lerobot = a LeRobot data set, version 2.0, 2.1 or 3.0
    kind: SourceKind = SourceKind.folder
    # folder of raw videos, searched recursively; null = none, samples are there already
    source: str | None = None
    # folder of processed samples
    path: str = MISSING
    # caption of every video that has none of its own; null = such videos are skipped. {task} in it
    # stands for what a bridge or lerobot source says the robot does
    prompt: str | None = None
    # CSV or JSONL with columns video (path below data.source) and caption; null = none
    captions: str | None = None
    # lerobot: names of the cameras to take, with or without observation.images.; null = all
    cameras: list[str] | None = None
    # frames of a clip; 1 or 8k+1, other numbers are cut down to that
    frames: int = 121
    # height of a clip, pixels, a multiple of 16
    height: int = 704
    # width of a clip, pixels, a multiple of 16
    width: int = 1280
    # frames per second of a clip, resampled by time stamps; null = as recorded
    fps: float | None = None
    # crop = cut to the aspect ratio; pad = borders and a padding mask; stretch = distort
    fit: Fit = Fit.crop
    # clips taken from each video, at most one per start frame
    chunks_per_video: int = 5
    # share of its frames that a clip may have in common with another; 1 = all but one
    max_overlap: float = 0.5
    # share of the episodes kept out of training; under 5 the end of each; 0 = none
    held_out: float = 0.1
    # seed of clip choice, of the held-out split and of the rendered videos
    seed: int = 0
    # safetensors = ours; nemo = four files a sample, as the NeMo data module reads them
    format: SampleFormat = SampleFormat.safetensors
    # clips the toy tokenizer is fitted on
    tokenizer_clips: int = 64
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass
class ParallelConfig:
    # ranks that hold copies of the whole model, each with its own samples; -1 = what is left
    dp_replicate: int = 1
    # ranks that share weights, gradients and optimizer state (FSDP), each with its own samples;
    # -1 = what is left
    dp_shard: int = 1
    # ranks that share the tokens of each sample (context parallel)
    cp: int = 1
    # ranks that share the heads and the MLP of each block (tensor parallel)
    tp: int = 1
    # with tp: share the tokens between the blocks' parts too
    sequence_parallel: bool = True
    # bf16 = bfloat16 compute with float32 weights and loss; fp32 = float32 throughout;
    # auto = bf16 on a GPU, fp32 on a CPU
    precision: Precision = Precision.auto
    # products of the blocks' large linear layers: default = as `precision` says; float8 = 8 bits
    # with a scale a tensor (torchao), on CUDA of compute capability 8.9 or more
    linears: Linears = Linears.default
    # what blocks compute again in the backward pass: none = nothing, most memory; save_matmul =
    # all but matrix products and attention; save_mlp = all but self-attention and the MLP's second
    # product; save_attention = all but self-attention; full = all
    recompute: Recompute = Recompute.none
    # last blocks that keep all their activations whatever `recompute` says
    recompute_except: int = 0
    # move what blocks keep to main memory until the backward pass needs it; CUDA only
    offload_activations: bool = False
    # attention kernel: auto = the first that works here of flash4 (FlashAttention 4, where package
    # flash-attn-4 is installed) and cudnn, both on Hopper and newer, flash, efficient, math; or one
    # of these
    attention: Attention = Attention.auto
    # compile each transformer block, and the update of moments in bf16, with torch.compile
    compile: bool = False


@dataclass
class EngineConfig:
    # engine that trains: torch, or nemo (NeMo's trainer with Megatron-core, CUDA only)
    name: str = "torch"
    # device: auto = CUDA if there is one, else cpu; or cpu, cuda, cuda:1
    device: str = "auto"
    # true = start although the estimate says that the device's memory is too small, or training and
    # sampling do not compute the same from the given weights
    force: bool = False
    # nemo: linear layers in FP8 by Transformer Engine: none; delayed = scaled by what steps before
    # had; tensorwise = by what each tensor has
    fp8: Fp8 = Fp8.none
    # nemo: what ranks of dp_shard share: false = optimizer state; true = weights and gradients too
    megatron_fsdp: bool = False


@dataclass
class OptimConfig:
    # peak learning rate
    lr: float = MISSING
    # decoupled weight decay
    weight_decay: float = 0.0
    # decay rates of the first and second moment
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    # term added to the denominator
    eps: float = 1e-8
    # constant, or cosine down to min_lr_ratio at trainer.max_steps
    schedule: Schedule = Schedule.constant
    # steps of linear warm-up from 0
    warmup_steps: int = 0
    # last learning rate of the cosine schedule over the peak
    min_lr_ratio: float = 0.0
    # largest global gradient norm; null = no clipping
    grad_clip: float | None = 1.0
    # how the moments are kept: fp32; bf16, stochastically rounded; int8, block-wise (torchao)
    state: StatePrecision = StatePrecision.fp32


@dataclass
class TrainerConfig:
    # optimizer steps
    max_steps: int = 1000
    # samples of one optimizer step
    global_batch_size: int = 1
    # samples of one forward pass; the rest of a step is accumulated
    micro_batch_size: int = 1
    # most steps in a row skipped for a loss or gradient that is NaN or infinite; one more stops
    max_skipped_steps: int = 5
    # steps between checkpoints; 0 = only the last
    save_every: int = 200
    # checkpoints kept, newest first; 0 = all
    keep: int = 3
    # steps between validations, the first before step 1; 0 = none
    validate_every: int = 100
    # held-out samples of a validation, at most
    validation_samples: int = 8
    # fixed sigmas of a validation, at equal quantiles of the training distribution
    validation_sigmas: int = 8
    # steps between previews, the first before step 1; 0 = none
    preview_every: int = 500
    # sampling steps of a preview
    preview_steps: int = 12


@dataclass
class ResumeConfig:
    # weights to start from: a run, a step of a run, a diffusers folder, model.pt of the original
    # code, or a NeMo checkpoint (zarr or torch_dist); null = none
    path: str | None = None
    # auto = go on in an existing run; fresh = a new folder; never = an existing run is an error
    mode: ResumeMode = ResumeMode.auto


@dataclass
class GenerateConfig:
    # what to show; null = the captions of the training data, a video each
    prompt: str | None = None
    # text file with one prompt a line, in place of generate.prompt
    prompt_file: str | None = None
    # Video2World: a picture, or a video whose last frames are given; null = nothing is given
    input: str | None = None
    # frames of generate.input that are given: 1, 9, 17, ...; null = 1 of a picture, and of a video
    # as many as the model was trained with
    input_frames: int | None = None
    # what guidance steers away from; null = no text
    negative_prompt: str | None = None
    # seed of the first video of a prompt, the next ones count up
    seed: int = 1
    # videos of each prompt
    videos_per_prompt: int = 1
    # captions taken from the training data when there is no prompt
    max_captions: int = 4
    # sampling steps
    steps: int = 35
    # 0 = conditional only; x0 = cond + guidance * (cond - uncond)
    guidance: float = MISSING
    # res_2ab = second order, as the original; euler = as diffusers
    sampler: Sampler = Sampler.res_2ab
    # compile the transformer blocks; null = on CUDA, where it saves a video more than it takes
    compile: bool | None = None
    # folder of the videos; null = videos/ in the run directory
    out: str | None = None


@dataclass
class ExportConfig:
    # what to write: diffusers = config.json and safetensors, as the release has them; original =
    # model.pt of the original code; nemo = Megatron's zarr format, as NeMo's recipes start from
    format: ExportFormat = ExportFormat.diffusers
    # folder to write; it must not exist or be empty
    path: str | None = None
    # dtype of the written weights: bf16 or fp32; auto = bf16 of a run, and of foreign weights what
    # they have
    dtype: ExportDtype = ExportDtype.auto
    # largest size of a safetensors file, GB
    shard_gb: float = 10.0
    # nemo: ranks of tensor parallelism whose parts are files of their own; any number reads them
    tp: int = 1


@dataclass
class DownloadConfig:
    # more to fetch: guardrail, prompt_upsampler (Cosmos-1.0-Prompt-Upsampler-12B-Text2World)
    extras: list[Extra] = field(default_factory=list)
    # true = fetch the sample videos of NVIDIA's guide too (Cosmos-NeMo-Assets)
    sample_videos: bool = False
    # true = stop after the table of what is open and how much is missing
    check: bool = False
    # true = hash again what was fetched before, and fetch what has changed
    verify: bool = False


@dataclass
class LogConfig:
    # steps between rows in wandb; metrics.jsonl has every step
    every: int = 1
    # off, offline (synchronised later with `wandb sync`) or online
    wandb: WandbMode = WandbMode.off
    # project the run appears in
    wandb_project: str = "cosmos-hydra"
    # write report.html at the end of post_train and generate
    report: bool = True


@dataclass
class LaunchConfig:
    # true = print what launch=torchrun or launch=slurm would start, and start nothing
    dry_run: bool = False


@dataclass
class PreprocessConfig:
    # show clips decoded back from their latents beside the source, with their PSNR: contact sheets
    # and mp4 files in <data.path>/previews (data.format=nemo: <data.path>.previews)
    preview: bool = False
    # clips to show, spread over all
    preview_clips: int = 8
    # compile the Cosmos tokenizer (CUDA only); null = where there are at least 100 clips to make
    compile: bool | None = None


@dataclass
class PlanConfig:
    # GPU to plan for: h200 (141 GB), h100 or a100 (80 GB)
    gpu: PlannedGpu = PlannedGpu.h200
    # number of GPUs, of one host; null = what the degrees of parallel multiply to, 8 with a -1
    gpus: int | None = None


@dataclass
class PipelineConfig:
    # stages to run, in this order
    stages: list[Stage] = field(
        default_factory=lambda: [Stage.preprocess, Stage.post_train, Stage.generate]
    )


@dataclass
class Config:
    # what to do: download, preprocess, post_train, generate, pipeline (these three), report,
    # export, inspect, plan or doctor
    stage: Stage = MISSING
    # name of the run; its folder is ${paths.runs}/${name}
    name: str = MISSING
    # seed of weights, sample order, noise and text dropout
    seed: int = 0
    # what generate, report and export take: a run or a step of a run, or (not report) weights of
    # any format that resume.path takes; null = this run
    checkpoint: str | None = None
    paths: PathsConfig = field(default_factory=PathsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    download: DownloadConfig = field(default_factory=DownloadConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    log: LogConfig = field(default_factory=LogConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    @property
    def stages(self) -> list[Stage]:
        """Return the stages this command runs, in order."""
        return self.pipeline.stages if self.stage is Stage.pipeline else [self.stage]


def register() -> None:
    """Make the schema known to Hydra under the name `schema`."""
    ConfigStore.instance().store(name="schema", node=Config)


def load(composed: DictConfig) -> Config:
    """Return plain objects with every interpolation resolved.

    Raises: omegaconf errors for an unknown key, or a value that is missing or does not resolve.
    """
    # `+key=value` adds keys that the schema lacks; the schema itself refuses them
    return _objects(OmegaConf.to_container(composed, resolve=False))


@cache
def _schema() -> DictConfig:
    """Return the schema, which takes 15 ms to make; for merging, which copies it."""
    schema = OmegaConf.structured(Config)
    assert isinstance(schema, DictConfig)
    return schema


def _objects(values: Any) -> Config:
    config = OmegaConf.to_object(OmegaConf.merge(_schema(), values))
    assert isinstance(config, Config)
    return config


def to_dict(section: Any) -> dict[str, Any]:
    """Return a config section as JSON-ready values, enums by name."""
    return {key: _plain(value) for key, value in asdict(section).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value


def from_dict(values: dict[str, Any]) -> Config:
    """Return the config that `to_dict` wrote, checked against the schema; `${` in it is text.

    Raises: ValueError naming a key that does not fit.
    """
    try:
        return _objects(_escaped(values))
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from error


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        # OmegaConf halves the backslashes before `${` and takes the last one as the escape
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: _escaped(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_escaped(part) for part in value]
    return value
