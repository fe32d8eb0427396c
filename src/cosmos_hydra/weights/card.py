"""The model card of exported weights: what they began with, what they were trained on and how.

It names no folder of this machine beyond its last part, since cards get published.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config, ModelConfig, PeftKind
from cosmos_hydra.weights.compare import Difference
from cosmos_hydra.weights.locate import Located

LICENSE = "NVIDIA Open Model License"
LICENSE_LINK = (
    "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/"
)
OTHER_LICENSE = f"""license: other
license_name: nvidia-open-model-license
license_link: {LICENSE_LINK}
"""


@dataclass(frozen=True)
class Exported:
    """What was written: its format in words, dtypes, bytes, and how it compares with the base."""

    what: str
    dtypes: str
    size_bytes: int
    difference: Difference | None = None
    # the library that loads it, for the Hub; empty = none that the Hub knows
    library: str = ""


def model_card(weights: Located, model: ModelConfig, exported: Exported) -> str:
    """Return README.md of exported weights."""
    found = weights.checkpoint
    facts = [
        f"architecture: {exported.what}, `model={model.name}`",
        f"weights: {exported.dtypes}, {exported.size_bytes / 1e9:.3g} GB",
    ]
    if found is None:
        facts.append(
            f"converted from: {weights.format.value} `{weights.path.name}` "
            f"(sha256 {weights.digest}); every number as it is there, but for the dtype"
        )
        head = _head(model.name, exported.library, True)
        return "\n".join([*head, _listed(facts), *_licence(True)])
    config = schema.from_dict(found.manifest["config"])
    began = list(_lineage(found.manifest.get("base")))
    is_derived = bool(began) and not began[-1].startswith("random")
    facts[1] += f", step {found.step} (sha256 {weights.digest})"
    facts += [f"began with: {line}" for line in began or ["weights the checkpoint does not name"]]
    if exported.difference is not None:
        facts.append(
            f"{exported.difference.differing} of {exported.difference.compared} tensors differ "
            f"from what it began with"
        )
    facts.append(f"data: `{config.data.name}`, manifest hash {found.manifest['data']}")
    training = ["## Training\n", _listed(_numbers(config))]
    head = _head(config.name, exported.library, is_derived)
    return "\n".join([*head, _listed(facts), *training, *_licence(is_derived)])


def _head(name: str, library: str, is_derived: bool) -> list[str]:
    facts = OTHER_LICENSE if is_derived else ""
    facts += f"library_name: {library}\n" if library else ""
    return [
        *([f"---\n{facts}---\n"] if facts else []),
        f"# {name}\n",
        "A video diffusion transformer, exported by cosmos-hydra.\n",
    ]


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


def _licence(is_derived: bool) -> list[str]:
    text = "Trained from random weights: the choice of whoever trained them.\n"
    if is_derived:
        text = (
            f"Where the weights it began with are NVIDIA's released Cosmos weights, these are a "
            f"derivative model under the [{LICENSE}]({LICENSE_LINK}).\n"
        )
    return ["## Licence\n", text]


def _listed(items: Any) -> str:
    return "".join(f"- {item}\n" for item in items)
