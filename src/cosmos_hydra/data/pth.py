"""One tensor from a .pth file, as the NeMo data module stores samples.

With weights_only it runs no code, yet a small file can still ask for any memory, or end the
process: compressed parts, a tensor larger than what it is made of, endlessly nested values.
"""

import pickle
import struct
import zipfile
from pathlib import Path

import torch

from cosmos_hydra.reading import shown, size_of

MAX_PICKLE_BYTES = 16 << 10  # that of a tensor has a few hundred
# what a file that is damaged, or no tensor, raises
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


def read_pth(path: Path) -> torch.Tensor:
    """Return a floating tensor on the CPU. Raises: ValueError for anything else in the file."""
    size_bytes = size_of(path)
    try:
        check_parts(path, size_bytes, MAX_PICKLE_BYTES)
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise ValueError(shown(error)) from error
    if not isinstance(tensor, torch.Tensor):
        raise ValueError("no tensor")
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError("no plain tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor larger than its data")
    return tensor.detach()


def check_parts(path: Path, size_bytes: int, max_pickle_bytes: int) -> None:
    """Refuse an archive that torch.save did not write: it compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("it is compressed")
    if sum(part.file_size for part in parts) > size_bytes:
        raise ValueError("its parts are larger than the file")
    pickles = [part for part in parts if part.filename.lower().endswith(".pkl")]
    if len(pickles) != 1 or pickles[0].file_size > max_pickle_bytes:
        raise ValueError("it holds more than a tensor")
