"""Files that attack whoever reads them: pickles that create a canary, bombs, crafted headers.

Each builder writes one file at a path. `CALLS` are what a pickle can have run; every one of them
does create the canary when it is unpickled, which is tested.
"""

import builtins
import functools
import io
import json
import operator
import os
import pickle
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Builder = Callable[[Path, Path], object]


class Call:
    """Pickles as a call of a function; unpickling makes the call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __call__(self) -> None:
        """Be callable, so that the result of one call can be called by the next."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def _nested(canary: Path) -> Call:
    inner = io.BytesIO()
    torch.save(CALLS["os.system"](canary), inner)
    return Call(torch.storage._load_from_bytes, inner.getvalue())


def _import_chain(canary: Path) -> Call:
    system = Call(getattr, Call(__import__, "os"), "system")
    return Call(system, f"touch {canary}")


CALLS: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda canary: Call(os.system, f"touch {canary}"),
    "subprocess": lambda canary: Call(subprocess.call, ["touch", str(canary)]),
    "builtins.eval": lambda canary: Call(builtins.eval, f"open({str(canary)!r}, 'w')"),
    "builtins.exec": lambda canary: Call(builtins.exec, f"open({str(canary)!r}, 'w')"),
    "builtins.open": lambda canary: Call(builtins.open, str(canary), "w"),
    "functools.partial": lambda canary: Call(Call(functools.partial, os.system, f"touch {canary}")),
    "pathlib": lambda canary: Call(Path.touch, canary),
    "operator.methodcaller": lambda canary: Call(Call(operator.methodcaller, "touch"), canary),
    "shutil.copyfile": lambda canary: Call(shutil.copyfile, "/dev/null", str(canary)),
    "__import__ and getattr": _import_chain,
    "torch.load of a pickle": _nested,
    "numpy object array": lambda canary: np.array([CALLS["os.system"](canary)], dtype=object),
}


def pickled(name: str, protocol: int = 2) -> Builder:
    """Return a builder of a plain pickle with one of CALLS."""
    return lambda path, canary: path.write_bytes(pickle.dumps(CALLS[name](canary), protocol))


def saved(make: Callable[[Path], Any], **options: Any) -> Builder:
    """Return a builder of what torch.save makes of a value; torch refuses some file names."""

    def build(path: Path, canary: Path) -> None:
        content = io.BytesIO()
        torch.save(make(canary), content, **options)
        path.write_bytes(content.getvalue())

    return build


def _beside_a_tensor(canary: Path) -> dict[str, Any]:
    return {"video_latent": torch.zeros(2), "hook": CALLS["builtins.exec"](canary)}


def _torch_tar(path: Path, canary: Path) -> None:
    """Write the layout of torch before 0.1.10: pickles in a tar archive."""
    content = pickle.dumps(CALLS["os.system"](canary), 2)
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            part = tarfile.TarInfo(name)
            part.size = len(content)
            archive.addfile(part, io.BytesIO(content))


def _torchscript(path: Path, canary: Path) -> None:
    """Write the layout of a TorchScript archive, whose constants and data are pickles."""
    content = pickle.dumps(CALLS["os.system"](canary), 2)
    parts = {"data.pkl": content, "constants.pkl": content, "version": b"3", "code/x.py": b""}
    _zip_of(parts)(path, canary)


# kinds of files that are pickles, or have some in them
PICKLES: dict[str, Builder] = {
    "pickle": pickled("os.system"),
    "pickle of protocol 5": pickled("builtins.eval", 5),
    "torch zip": saved(CALLS["os.system"]),
    "torch zip beside a tensor": saved(_beside_a_tensor),
    "torch legacy": saved(CALLS["os.system"], _use_new_zipfile_serialization=False),
    "torch tar": _torch_tar,
    "torchscript": _torchscript,
}


def _zip_of(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Builder:
    def build(path: Path, canary: Path) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in parts.items():
                archive.writestr(f"archive/{name}", content)

    return build


def _zip_of_a_tensor(compression: int, size_bytes: int) -> Builder:
    """Return a builder of what torch.save writes, compressed, with `size_bytes` zeros of data."""

    def build(path: Path, canary: Path) -> None:
        saved = io.BytesIO()
        torch.save(torch.zeros(2), saved)
        with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(path, "w", compression) as copy:
            for part in archive.infolist():
                content = archive.read(part.filename)
                is_data = part.filename.endswith("data/0")
                copy.writestr(part.filename, bytes(size_bytes) if is_data else content)

    return build


# .pth files that run nothing and harm all the same, or are no tensor
PTH: dict[str, Builder] = {
    "compressed data": _zip_of_a_tensor(zipfile.ZIP_DEFLATED, 200 << 20),
    "compressed pickle": _zip_of(
        {"data.pkl": b"\x80\x02" + b"N0" * (20 << 20) + b"N.", "version": b"3"},
        zipfile.ZIP_DEFLATED,
    ),
    "endless tuples as a key": _zip_of(
        {"data.pkl": b"\x80\x02})" + b"\x85" * 2_000_000 + b"Ns.", "version": b"3"}
    ),
    "a view larger than its data": saved(lambda canary: torch.zeros(1).expand(1 << 20, 1 << 20)),
    "a tensor without data": saved(lambda canary: torch.zeros(1 << 40, device="meta")),
    "a sparse tensor": saved(lambda canary: torch.zeros(4, 4).to_sparse()),
    "whole numbers": saved(lambda canary: torch.zeros(16, 2, 6, 8, dtype=torch.int64)),
    "a dict": saved(lambda canary: {"x": torch.zeros(2)}),
    "text": lambda path, canary: path.write_text("no tensor"),
    "nothing": lambda path, canary: path.write_bytes(b""),
    "zip of nothing": _zip_of({}),
}


def _header(content: Any, data: bytes = b"", length: int | None = None) -> Builder:
    header = content if isinstance(content, bytes) else json.dumps(content).encode()
    size = struct.pack("<Q", len(header) if length is None else length)
    return lambda path, canary: path.write_bytes(size + header + data)


def _tensor(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


def _many(count: int) -> bytes:
    entry = json.dumps(_tensor(shape=[0], data_offsets=[0, 0]))
    return ("{" + ",".join(f'"{number}":{entry}' for number in range(count)) + "}").encode()


FOUR = b"\0" * 4
# safetensors with crafted headers; whatever tensor is asked for, none may come out
HEADERS: dict[str, Builder] = {
    "nothing": lambda path, canary: path.write_bytes(b""),
    "seven bytes": lambda path, canary: path.write_bytes(b"\0" * 7),
    "length of nothing": _header(b"", b"", 0),
    "length past the file": _header({"x": _tensor()}, FOUR, 1 << 20),
    "length of 100 MB": _header({"x": _tensor()}, FOUR, 100 << 20),
    "length of 2**63": _header({"x": _tensor()}, FOUR, 1 << 63),
    "length of 2**64-1": _header({"x": _tensor()}, FOUR, (1 << 64) - 1),
    "a hundred thousand tensors": _header(_many(100_000)),
    "no JSON": _header(b"\x80\x02}q\x00."),
    "a list": _header([_tensor()], FOUR),
    "deep lists": _header(b'{"x":' + b"[" * 500_000, FOUR),
    "deep objects": _header(b'{"x":' * 200_000, FOUR),
    "a name twice": _header(
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        FOUR,
    ),
    "negative offset": _header({"x": _tensor(data_offsets=[-4, 0])}, FOUR),
    "offsets past the data": _header({"x": _tensor(shape=[9], data_offsets=[0, 36])}, FOUR),
    "offsets backwards": _header({"x": _tensor(data_offsets=[4, 0])}, FOUR),
    "offsets of 2**64-1": _header({"x": _tensor(data_offsets=[0, (1 << 64) - 1])}, FOUR),
    "overlapping tensors": _header({"x": _tensor(), "y": _tensor()}, FOUR),
    "a hole": _header({"x": _tensor(data_offsets=[4, 8])}, FOUR * 2),
    "data nobody owns": _header({"x": _tensor()}, FOUR * 100),
    "data cut short": _header({"x": _tensor()}, FOUR[:3]),
    "shape that overflows": _header({"x": _tensor(shape=[1 << 32, 1 << 32, 1 << 32])}, FOUR),
    "shape larger than the data": _header({"x": _tensor(shape=[1 << 40])}, FOUR),
    "negative shape": _header({"x": _tensor(shape=[-1])}, FOUR),
    "fractional shape": _header({"x": _tensor(shape=[1.0])}, FOUR),
    "unknown dtype": _header({"x": _tensor(dtype="OBJECT")}, FOUR),
    "dtype of another size": _header({"x": _tensor(dtype="F64")}, FOUR),
    "no dtype": _header({"x": {"shape": [1], "data_offsets": [0, 4]}}, FOUR),
    "metadata that is no text": _header({"__metadata__": {"a": [1]}, "x": _tensor()}, FOUR),
}

# JSON files that no reader should take
JSON: dict[str, Builder] = {
    "empty": lambda path, canary: path.write_bytes(b""),
    "a list": lambda path, canary: path.write_text("[1]"),
    "a text": lambda path, canary: path.write_text('"x"'),
    "deep lists": lambda path, canary: path.write_text("[" * 200_000),
    "deep objects": lambda path, canary: path.write_text('{"a":' * 200_000),
    "many lists": lambda path, canary: path.write_text("[" + "[]," * 8_000_000 + "[]]"),
    "a number of 100 kB": lambda path, canary: path.write_text('{"a":' + "9" * 100_000 + "}"),
    "no UTF-8": lambda path, canary: path.write_bytes(b'{"a": "\xff\xfe"}'),
    "300 MB": lambda path, canary: _sparse(path, 300 << 20),
}

# what has a file's name and is none
NO_FILES: dict[str, Builder] = {
    "a pipe": lambda path, canary: os.mkfifo(path),
    "a folder": lambda path, canary: path.mkdir(),
}


def _sparse(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)
