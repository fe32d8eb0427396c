"""Weights & Biases, if asked for; its failure never stops training.

The run id is stored in the run directory, so a resumed run is the same run there. The command
line, code and machine facts are not sent: they may hold secrets.
"""

import logging
import secrets
from pathlib import Path
from typing import Any

from cosmos_hydra import config as schema
from cosmos_hydra import files
from cosmos_hydra.config import Config, WandbMode

logger = logging.getLogger(__name__)


class Wandb:
    """A wandb run, or nothing when log.wandb=off or when it cannot start."""

    def __init__(self, config: Config, run: Path) -> None:
        self.run: Any = None
        if config.log.wandb is not WandbMode.off:
            self._attempt(lambda: self._start(config, run))

    def _start(self, config: Config, run: Path) -> None:
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=config.log.wandb_project,
            name=config.name,
            id=_run_id(run),
            dir=str(run),
            mode="online" if config.log.wandb is WandbMode.online else "offline",
            resume="allow",
            config=schema.to_dict(config),
            settings=wandb.Settings(
                disable_code=True,
                disable_git=True,
                save_code=False,
                console="off",
                silent=True,
                x_disable_meta=True,
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

    def _attempt(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 (a third party's failure must not stop training)
            reason = " ".join(str(error).split())
            logger.warning(f"log.wandb: {type(error).__name__}: {reason}; going on without it")
            self.run = None


def _run_id(run: Path) -> str:
    path = run / "wandb_id.txt"
    if not path.is_file():
        files.write_bytes(path, secrets.token_hex(8).encode())
    return path.read_text().strip()
