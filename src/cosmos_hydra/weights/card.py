"""The model card of exported weights: what they began with, what they were trained on and how.

It names no folder of this machine beyond its last part, since cards get published.
"""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config, ExportDtype, PeftKind
from cosmos_hydra.engines.torch.checkpoint import Checkpoint

LICENSE = "NVIDIA Open Model License"
LICENSE_LINK = (
    "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/"
)
OTHER_LICENSE = f"""license: other
license_name: nvidia-open-model-license
license_link: {LICENSE_LINK}
"""


def model_card(found: Checkpoint, digest: str, dtype: ExportDtype, size_bytes: int) -> str:
    """Return README.md of exported weights; `digest` is of the checkpoint they come from."""
    config = schema.from_dict(found.manifest["config"])
    began = list(_lineage(found.manifest.get("base")))
    is_derived = bool(began) and not began[-1].startswith("random")
    facts = [
        f"architecture: diffusers CosmosTransformer3DModel, `model={config.model.name}`",
        f"weights: {dtype.name}, {size_bytes / 1e9:.3g} GB, step {found.step} (sha256 {digest})",
        *(f"began with: {line}" for line in began or ["weights that the checkpoint does not name"]),
        f"data: `{config.data.name}`, manifest hash {found.manifest['data']}",
    ]
    parts = [
        f"---\n{OTHER_LICENSE if is_derived else ''}library_name: diffusers\n---\n",
        f"# {config.name}\n",
        "A video diffusion transformer, exported by cosmos-hydra.\n",
        _listed(facts),
        "## Training\n",
        _listed(_numbers(config)),
        "## Licence\n",
        _licence(is_derived),
    ]
    return "\n".join(parts)


def _lineage(base: dict[str, Any] | None) -> Iterator[str]:
    """Yield what a run began with, what that began with, and so on."""
    while base:
        if "seed" in base:
            yield f"random weights of seed {base['seed']}"
        else:
            yield f"`{PurePath(str(base['path'])).name}` (sha256 {base['sha256']})"
        base = base.get("base")


def _numbers(config: Config) -> Iterator[str]:
    trainer, optim, data, peft = config.trainer, config.optim, config.data, config.peft
    yield f"clips: {data.frames} frames at {data.height}x{data.width}"
    yield f"steps: {trainer.max_steps} of {trainer.global_batch_size} clips, seed {config.seed}"
    yield (
        f"AdamW: lr {optim.lr:g}, {optim.schedule.name} schedule, {optim.warmup_steps} steps of "
        f"warm-up, betas {optim.betas}, weight decay {optim.weight_decay:g}, "
        f"clipping at {optim.grad_clip}"
    )
    yield f"precision: {config.parallel.precision.name}"
    if peft.kind is PeftKind.lora:
        targets = ", ".join(peft.targets)
        yield f"LoRA: rank {peft.rank}, alpha {peft.alpha:g}, on {targets}; merged here"


def _licence(is_derived: bool) -> str:
    if is_derived:
        return (
            f"Where the weights it began with are NVIDIA's released Cosmos weights, these are a "
            f"derivative model under the [{LICENSE}]({LICENSE_LINK}).\n"
        )
    return "Trained from random weights: the choice of whoever trained them.\n"


def _listed(items: Any) -> str:
    return "".join(f"- {item}\n" for item in items)
