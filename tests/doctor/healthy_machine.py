"""A machine on which every check of `stage=doctor` is content, to be broken one way at a time.

The checks are real and run in this process; what they look at outside it is replaced: programs on
PATH are scripts, the Hub is a server on the loopback, devices are folders.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cosmos_hydra import config as schema
from cosmos_hydra.doctor import gpu, machine
from cosmos_hydra.doctor.findings import Finding, Level, examine
from cosmos_hydra.overrides import conf_folder
from cosmos_hydra.stages.doctor import CHECKS

VARIABLES = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CUDA_VISIBLE_DEVICES"),
    *("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_CONFIG_DIR", "NETRC"),
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class Machine:
    """The healthy machine; its methods break it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.programs, self.cards = folder / "bin", folder / "pci"
        for each in (self.programs, self.cards, folder / "home"):
            each.mkdir()
        patch.chdir(folder)
        patch.setenv("PATH", str(self.programs))
        patch.setenv("HOME", str(folder / "home"))
        for name in (*VARIABLES, *PROXIES, *map(str.lower, PROXIES)):
            patch.delenv(name, raising=False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "home/token"))
        patch.setattr(constants, "HF_HOME", str(folder / "home/hf"))
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "home/cache"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(torch, "__version__", "2.11.0+cpu")
        patch.setattr(torch.version, "cuda", None)
        (folder / "meminfo").write_text("MemTotal: 32000000 kB\nMemAvailable: 24000000 kB\n")
        patch.setattr(machine, "MEMORY_INFO", folder / "meminfo")
        patch.setattr(machine, "MEMORY_LIMITS", (folder / "limit",))
        patch.setattr(gpu, "PCI_FOLDER", self.cards)
        patch.setattr(gpu, "DRIVER_FOLDER", folder / "no driver")
        self.plug_in("0x8086", "0x030000")

    def plug_in(self, vendor: str, kind: str) -> None:
        """Add a card to the PCI bus."""
        card = self.cards / f"{vendor} {kind}"
        card.mkdir()
        (card / "vendor").write_text(f"{vendor}\n")
        (card / "class").write_text(f"{kind}\n")

    def program(self, name: str, script: str) -> None:
        """Put a program on PATH."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def nvidia_driver(self, version: str, *gpus: str) -> None:
        """Put an nvidia-smi on PATH that lists GPUs."""
        self.program("nvidia-smi", "\n".join(f"echo '{version}, {name}'" for name in gpus))

    def cuda_build(self, error: str) -> None:
        """Have torch be built for CUDA 13 and fail to start it with the words that it uses."""

        def start() -> None:
            raise RuntimeError(error)

        self.patch.setattr(torch, "__version__", "2.11.0+cu130")
        self.patch.setattr(torch.version, "cuda", "13.0")
        self.patch.setattr(torch.cuda, "init", start)

    def installed(self, **versions: str | None) -> None:
        """Have packages be installed in another version, or not at all."""
        real = metadata.version

        def version(name: str) -> str:
            found = versions.get(name.replace("-", "_"), real(name))
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        self.patch.setattr(metadata, "version", version)

    def unimportable(self, *modules: str) -> None:
        """Have modules fail to import."""
        for module in modules:
            self.patch.setitem(sys.modules, module, None)

    def findings(self, *values: str, model: str = "tiny") -> dict[str, Finding]:
        """Return what every check finds with some config keys changed."""
        return dict(examine(CHECKS, self.config(*values, model=model)))

    def config(self, *values: str, model: str = "tiny") -> schema.Config:
        """Return the config with some keys changed."""
        return schema.load(OmegaConf.merge(_composed(model), OmegaConf.from_dotlist(list(values))))

    def only_problem(self, *values: str, model: str = "tiny") -> tuple[str, Finding]:
        """Return the one topic that is not in order, with its finding; there must be just one."""
        found = self.findings(*values, model=model)
        [problem] = [item for item in found.items() if item[1].level is not Level.OK]
        return problem

    @contextmanager
    def hub(self, status: int | None) -> Iterator[list[str]]:
        """Serve a Hub that answers with a status, or never; yields the tokens it was shown."""
        tokens: list[str] = []
        is_over = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/api/whoami-v2"
                tokens.append(self.headers["authorization"])
                if status is None:
                    is_over.wait(30)
                self.send_response(status or 500)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            yield tokens
        finally:
            is_over.set()
            server.shutdown()
            server.server_close()


@cache
def _composed(model: str) -> DictConfig:
    schema.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", ["stage=doctor", f"model={model}"])
