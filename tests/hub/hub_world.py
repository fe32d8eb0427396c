"""A machine whose Hub is a server of the tests: its cache, its environment, and small repositories.

The real huggingface_hub talks to the server; only where it looks, and how long pauses are, differ.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from conftest import Outcome
from hub_server import Hub, Repo, serving
from huggingface_hub import constants, file_download
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cosmos_hydra import config as schema
from cosmos_hydra.errors import CosmosError
from cosmos_hydra.hub import client
from cosmos_hydra.job import Job
from cosmos_hydra.overrides import conf_folder
from cosmos_hydra.stages.download import run

WEIGHTS = "nvidia/Cosmos-1.0-Diffusion-7B-Text2World"
TOKENIZER = "nvidia/Cosmos-1.0-Tokenizer-CV8x8x8"
T5 = "google-t5/t5-11b"
GUARDRAIL = "nvidia/Cosmos-1.0-Guardrail"
UPSAMPLER = "nvidia/Cosmos-1.0-Prompt-Upsampler-12B-Text2World"
VIDEOS = "nvidia/Cosmos-NeMo-Assets"
# how the HTTP clients call a refused connection and one that is cut
REFUSED, CUT = ("ConnectError", "RemoteProtocolError")
if client.NETWORK[0].__module__.startswith("requests"):
    REFUSED, CUT = ("ConnectionError", "ChunkedEncodingError")
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
CHUNK = 1 << 14
DOWNLOAD = ("stage=download", "model=7b")


def content(name: str, size: int) -> bytes:
    """Return bytes that depend on the name."""
    return random.Random(name).randbytes(size)


def released(scale: int = 1) -> dict[str, Repo]:
    """Return repositories laid out like the released ones, of random bytes."""
    pipeline = {
        "model_index.json": 300,
        "README.md": 900,
        ".gitattributes": 50,
        "transformer/config.json": 700,
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors": 90_000 * scale,
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": 50_000 * scale,
        "transformer/diffusion_pytorch_model.safetensors.index.json": 1500,
        "vae/config.json": 600,
        "vae/diffusion_pytorch_model.safetensors": 20_000,
        "text_encoder/config.json": 800,
        "text_encoder/model-00001-of-00001.safetensors": 60_000 * scale,
        "text_encoder/model.safetensors.index.json": 1200,
        "tokenizer/tokenizer.json": 5000,
        "tokenizer/spiece.model": 4000,
        "scheduler/scheduler_config.json": 200,
        "model.pt": 130_000 * scale,
        "config.json": 20,
        "nemo/context/model.yaml": 500,
        "nemo/weights/.metadata": 3000,
        "nemo/weights/module.blocks/0.0": 70_000 * scale,
    }
    others = {
        TOKENIZER: {
            "vae/config.json": 600,
            "vae/diffusion_pytorch_model.safetensors": 40_000 * scale,
            "encoder.jit": 30_000,
        },
        T5: {
            "config.json": 700,
            "pytorch_model.bin": 99_000,
            "spiece.model": 4000,
            "tokenizer.json": 5000,
            "tf_model.h5": 99_000,
        },
        GUARDRAIL: {"README.md": 100, "blocklist/words.txt": 3000},
        UPSAMPLER: {"README.md": 100, "model.pt": 9000},
    }
    sizes = {WEIGHTS: pipeline, **others}
    repos = {
        repo: Repo({path: content(f"{repo}/{path}", size) for path, size in listed.items()})
        for repo, listed in sizes.items()
    }
    videos = {f"assets/robot_{number}.mp4": content(f"video {number}", 5000) for number in range(2)}
    repos[VIDEOS] = Repo(videos, kind="dataset")
    return repos


@cache
def _composed(model: str) -> DictConfig:
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", ["stage=download", f"model={model}"])


@cache
def config_of(*typed: str, model: str = "7b") -> schema.Config:
    """Return the config of stage=download with some keys changed; do not change it."""
    return schema.load(OmegaConf.merge(_composed(model), OmegaConf.from_dotlist(list(typed))))


class Lines(logging.Handler):
    """Everything that is logged for the console."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.getMessage()}\n"


class World:
    """The machine, and the Hub it talks to."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, hub: Hub) -> None:
        self.folder, self.hub, self.patch = folder, hub, patch
        self.home = folder / "hf"
        self.work = folder / "work"
        self.work.mkdir(exist_ok=True)
        for name in (*VARIABLES, *PROXIES, *map(str.lower, PROXIES)):
            patch.delenv(name, raising=False)
        patch.setenv("HF_TOKEN", hub.token)
        patch.setattr(constants, "HF_HOME", str(self.home))
        patch.setattr(constants, "HF_HUB_CACHE", str(self.home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(self.home / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for owner in (constants, file_download):  # the second has a copy in 0.36
            patch.setattr(owner, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        patch.setattr(client, "CHUNK_BYTES", CHUNK)
        patch.setattr(client, "PAUSES_S", (0.01, 0.02, 0.02, 0.02))

    def download(self, *typed: str, model: str = "7b") -> Outcome:
        """Run the stage without the command line, which takes half a second."""
        lines, root = Lines(), logging.getLogger("cosmos_hydra")
        root.addHandler(lines)
        root.setLevel(logging.INFO)
        try:
            run(config_of(*typed, model=model), Job(Path()))
            return Outcome(0, lines.text, "")
        except CosmosError as error:
            return Outcome(error.exit_code, lines.text, str(error))
        finally:
            root.removeHandler(lines)
            root.setLevel(logging.NOTSET)

    def snapshot(self, repo: str) -> Path:
        """Return the folder that the files of a repository belong into."""
        found = self.hub.repos[repo]
        name = f"{found.kind}s--{repo.replace('/', '--')}"
        return self.home / "hub" / name / "snapshots" / found.commit

    def fetched(self, repo: str) -> dict[str, bytes]:
        """Return the files of a repository that are on this machine."""
        folder = self.snapshot(repo)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    def expected(self, repo: str, *folders: str) -> dict[str, bytes]:
        """Return the Hub's files of a repository whose path begins with one of these."""
        files = self.hub.repos[repo].files
        return {path: data for path, data in files.items() if path.startswith(folders or ("",))}

    def blobs(self) -> list[Path]:
        """Return everything in the cache that is content."""
        return sorted(self.home.glob("hub/*/blobs/*"))


@contextmanager
def world_of(
    folder: Path, patch: pytest.MonkeyPatch, repos: dict[str, Repo] | None = None
) -> Iterator[World]:
    """Yield a machine with an empty cache, and its Hub."""
    with serving(Hub(released() if repos is None else repos)) as hub:
        yield World(folder, patch, hub)
