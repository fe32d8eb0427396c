"""The one place where transformers and diffusers load weights: from a folder, and nothing else.

A folder has passed `weights_folder` before: their own loaders follow every file name they find.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import shown

# what the loaders raise for a config or weights that make no sense
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)


def load_pretrained(model_class: Any, key: str, folder: Path, **options: Any) -> Any:
    """Return a frozen model of a class of transformers or diffusers, on the CPU.

    Raises: StageError when weights are damaged or missing; the libraries would make some up.
    """
    try:
        with _quiet():
            model, report = model_class.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except (*DAMAGE, SafetensorError) as error:
        raise StageError(f"{key}={folder} cannot be loaded ({shown(error)})") from error
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise StageError(
            f"{key}={folder} lacks {len(lacking)} weights of {model_class.__name__}, "
            f"{lacking[0]} among them; get the folder again"
        )
    return model.requires_grad_(False).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the libraries' reports of many lines: what matters in them is raised."""
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
