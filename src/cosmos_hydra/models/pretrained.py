"""The one place where transformers and diffusers load weights: from a folder, and nothing else.

A folder has passed `weights_folder` before: their own loaders follow every file name they find.
"""

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
