"""Weights & Biases, if asked for; its failure never stops training.

The run id is stored in the run directory, so a resumed run is the same run there. The command
line, code and machine facts are not sent: they may hold secrets.
"""

import configparser
import logging
import netrc
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from cosmos_hydra import config as schema
from cosmos_hydra import files
from cosmos_hydra.config import Config, WandbMode

PUBLIC_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # the latter in newer clients
START_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 60.0  # for what is still to upload; `wandb sync` uploads it later
logger = logging.getLogger(__name__)


class Wandb:
    """A wandb run, or nothing when log.wandb=off or when it cannot start."""

    def __init__(self, config: Config, run: Path) -> None:
        self.run: Any = None
        self.wandb: Any = None
        if config.log.wandb is WandbMode.online:
            otherwise = "going on offline, `wandb sync` uploads it later"
            self._attempt(lambda: self._start(config, run, "online"), otherwise)
        if config.log.wandb is not WandbMode.off and self.run is None:
            self._attempt(lambda: self._start(config, run, "offline"))

    def _start(self, config: Config, run: Path, mode: Literal["online", "offline"]) -> None:
        import wandb

        self.wandb = wandb
        wandb.setup(settings=wandb.Settings(silent=True))
        bounds = {"finish_timeout": FINISH_TIMEOUT_S, "finish_timeout_raises": True}
        self.run = wandb.init(
            project=config.log.wandb_project,
            name=config.name,
            id=_run_id(run),
            dir=str(run),
            mode=mode,
            resume="allow",
            config=schema.to_dict(config),
            settings=wandb.Settings(
                base_url=wandb_url() or wandb.Settings.model_fields["base_url"].default,
                disable_code=True,
                disable_git=True,
                save_code=False,
                console="off",
                silent=True,
                x_disable_meta=True,
                init_timeout=START_TIMEOUT_S,
                # wandb before 0.27 has no bound
                **{key: bounds[key] for key in bounds if key in wandb.Settings.model_fields},
            ),
        )

    def log(self, row: dict[str, Any]) -> None:
        """Send one row of metrics."""
        if self.run is not None:
            values = {name: value for name, value in row.items() if name != "step"}
            self._attempt(lambda: self.run.log(values, step=row["step"]))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Send one picture."""
        if self.run is not None:
            self._attempt(lambda: self.run.log({name: self.wandb.Image(str(path))}, step=step))

    def close(self) -> None:
        """Finish the run."""
        if self.run is not None:
            self._attempt(self.run.finish)

    def _attempt(self, action: Any, otherwise: str = "going on without it") -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 (a third party's failure must not stop training)
            reason = " ".join(str(error).split())
            logger.warning(f"log.wandb: {type(error).__name__}: {reason}; {otherwise}")
            self.run = None
            with suppress(Exception):
                # a service that still tries to go online would hold the run id
                self.wandb.teardown()


def wandb_url() -> str | None:
    """Return the server in the environment, else of `wandb login --host`; None = the public one.

    A file ./wandb/settings has no say: the key would go wherever the folder's owner wants.
    """
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    stored = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error):
        stored.read(folder / "settings")
    return os.environ.get("WANDB_BASE_URL") or stored.get("default", "base_url", fallback=None)


def wandb_host() -> str:
    """Return the host of the server that wandb would talk to."""
    url = wandb_url()
    return urlsplit(url).netloc.rpartition("@")[2] or url if url else PUBLIC_HOSTS[0]


def has_wandb_key(host: str) -> bool:
    """Return whether the environment or the netrc file has a key for the host."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    default = Path.home() / ("_netrc" if os.name == "nt" else ".netrc")
    file = Path(os.environ.get("NETRC", default)).expanduser()
    hosts = PUBLIC_HOSTS if host in PUBLIC_HOSTS else (host,)
    try:
        known = netrc.netrc(file)
    except (OSError, netrc.NetrcParseError):
        return False
    # login, account, password
    return any((known.authenticators(host) or ("", "", ""))[2] for host in hosts)


def _run_id(run: Path) -> str:
    path = run / "wandb_id.txt"
    if not path.is_file():
        files.write_bytes(path, secrets.token_hex(8).encode())
    return path.read_text().strip()
