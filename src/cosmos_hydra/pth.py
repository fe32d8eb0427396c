"""Files of torch.save: a sample's tensor, or a table of weights; the only use of torch.load.

With weights_only it runs no code, yet a small file can still ask for any memory, or end the
process: compressed parts, a tensor larger than what it is made of, endlessly nested values.
"""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from cosmos_hydra.reading import shown, size_of

MAX_PICKLE_BYTES = 16 << 10  # that of a tensor has a few hundred
MAX_TABLE_BYTES = 16 << 20  # that of a thousand tensors has a few hundred thousand
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
    tensor = _load(path, MAX_PICKLE_BYTES)
    if not isinstance(tensor, torch.Tensor):
        raise ValueError("no tensor")
    return plain(tensor)


def read_table(path: Path, is_archive: bool = True) -> dict[str, Any]:
    """Return the dict in a file; its tensors are read when they are used.

    A file before torch 1.6, which is no archive, is read at once. What is no tensor is for the
    caller to look at. Raises: ValueError for anything else in it.
    """
    # Transformer Engine leaves its notes in buffers
    with torch.serialization.safe_globals([io.BytesIO]):
        table = _load(path, MAX_TABLE_BYTES, is_archive, mmap=is_archive)
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise ValueError("no table of tensors")
    return table


def _load(path: Path, max_pickle_bytes: int, is_archive: bool = True, mmap: bool = False) -> Any:
    size_bytes = size_of(path)
    try:
        if is_archive:
            _check_parts(path, size_bytes, max_pickle_bytes)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except DAMAGE as error:
        raise ValueError(shown(error)) from error


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that is one. Raises: ValueError."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError("no plain tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor larger than its data")
    return tensor.detach()


def _check_parts(path: Path, size_bytes: int, max_pickle_bytes: int) -> None:
    """Refuse an archive that torch.save did not write: it compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("it is compressed")
    if sum(part.file_size for part in parts) > size_bytes:
        raise ValueError("its parts are larger than the file")
    pickles = [part for part in parts if part.filename.lower().endswith(".pkl")]
    if len(pickles) != 1 or pickles[0].file_size > max_pickle_bytes:
        raise ValueError("it holds more than tensors")
