"""What a config needs of the Hub: which repositories, and which files of each.

A repository can hold the same thing in several layouts; which one it has is read off the list of
its files. Imports nothing slow.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cosmos_hydra.config import (
    Config,
    Extra,
    ModelConfig,
    TextEncoderKind,
    TokenizerKind,
    WeightsFormat,
)

TOKENIZER_REPO = "nvidia/Cosmos-1.0-Tokenizer-CV8x8x8"
T5_REPO = "google-t5/t5-11b"
EXTRA_REPOS = {
    Extra.guardrail: "nvidia/Cosmos-1.0-Guardrail",
    Extra.prompt_upsampler: "nvidia/Cosmos-1.0-Prompt-Upsampler-12B-Text2World",
}
VIDEOS, VIDEOS_REPO = "videos", "nvidia/Cosmos-NeMo-Assets"


@dataclass(frozen=True)
class Layout:
    """One way to hold something: what must be there, what is fetched, and where it then lies.

    Alternatives in `needed` are parted by `|`; `place` is a path in the repository.
    """

    needed: tuple[str, ...]
    fetched: tuple[str, ...]
    place: str

    def select(self, paths: Iterable[str]) -> list[str]:
        """Return the paths to fetch, none if the layout is not there."""
        paths = sorted(paths)
        for pattern in self.needed:
            if not any(fnmatchcase(path, one) for one in pattern.split("|") for path in paths):
                return []
        return [path for path in paths if any(fnmatchcase(path, one) for one in self.fetched)]


def _folder(name: str) -> Layout:
    return Layout((f"{name}/config.json", f"{name}/*.safetensors"), (f"{name}/*",), name)


TRANSFORMER = {
    WeightsFormat.diffusers: _folder("transformer"),
    WeightsFormat.original: Layout(("model.pt",), ("model.pt", "config.json"), "model.pt"),
    WeightsFormat.nemo: Layout(("nemo/*",), ("nemo/*",), "nemo"),
}
AUTOENCODER = _folder("vae")
T5_NAMES = ("tokenizer.json", "spiece.model")
T5_PIPELINE = Layout(
    (*_folder("text_encoder").needed, "|".join(f"tokenizer/{name}" for name in T5_NAMES)),
    ("text_encoder/*", "tokenizer/*"),
    "text_encoder",
)
T5_TOP = Layout(
    ("config.json", "model.safetensors|model-*.safetensors", "|".join(T5_NAMES)),
    ("config.json", "model.safetensors*", "model-*.safetensors", *T5_NAMES),
    "",
)
# has to be converted
T5_BIN = Layout(
    ("config.json", "pytorch_model.bin", "|".join(T5_NAMES)),
    ("config.json", "pytorch_model.bin", *T5_NAMES),
    "",
)
WHOLE = Layout(("*",), ("*",), "")


@dataclass(frozen=True)
class Part:
    """Files of one repository that serve one purpose, in the first of some layouts it has.

    `setting` is what of the config names the repository, `kind` model or dataset.
    """

    name: str
    setting: str
    repo: str
    revision: str
    layouts: tuple[Layout, ...]
    kind: str = "model"

    def layout_of(self, paths: Iterable[str]) -> Layout | None:
        """Return the first layout that a repository with these files has."""
        paths = list(paths)
        return next((layout for layout in self.layouts if layout.select(paths)), None)

    @property
    def revision_key(self) -> str:
        """Return the config key of the revision, empty where that cannot be chosen."""
        key, _, _ = self.setting.partition("=")
        return key.replace(".repo", ".revision") if key.startswith("model.") else ""


def model_parts(model: ModelConfig, with_weights: bool = True) -> dict[str, Part]:
    """Return what is to come from the Hub, by the section of `model` whose path is to be set."""
    weights, tokenizer, texts = model.weights, model.tokenizer, model.text_encoder
    candidates = {
        "weights": (
            with_weights and not weights.from_scratch,
            f"transformer ({weights.format.name})",
            (TRANSFORMER[weights.format],),
        ),
        "tokenizer": (tokenizer.kind is TokenizerKind.cosmos, "tokenizer", (AUTOENCODER,)),
        "text_encoder": (
            texts.kind is TextEncoderKind.t5,
            "text encoder",
            (T5_PIPELINE, T5_TOP, T5_BIN),
        ),
    }
    parts = {}
    for section, (is_used, name, layouts) in candidates.items():
        found = getattr(model, section)
        if is_used and found.path is None and found.repo:
            setting = f"model.{section}.repo={found.repo}"
            parts[section] = Part(name, setting, found.repo, found.revision, layouts)
    return parts


def parts_of(config: Config) -> list[Part]:
    """Return everything that stage=download is asked for."""
    parts = list(model_parts(config.model).values())
    for extra in config.download.extras:
        repo = EXTRA_REPOS[extra]
        parts.append(Part(extra.name, f"download.extras=[{extra.name}]", repo, "main", (WHOLE,)))
    if config.download.sample_videos:
        setting = "download.sample_videos=true"
        parts.append(Part(VIDEOS, setting, VIDEOS_REPO, "main", (WHOLE,), "dataset"))
    return parts


def download_advice(model: ModelConfig, repo: str | None) -> str:
    """Return how advice begins where a path is null: with what to run, or not at all."""
    return f"run: cosmos-hydra stage=download model={model.name}, or " if repo else ""
