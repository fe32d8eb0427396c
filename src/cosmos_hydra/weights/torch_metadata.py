"""What a torch.distributed.checkpoint folder holds, from its `.metadata`, without running that.

`.metadata` is a pickle, and torch runs whatever it names. Here names become inert records: nothing
is imported or called, and a name that the metadata of no checkpoint holds is refused.
"""

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import plain_name, shown, size_of

METADATA = ".metadata"
MAX_BYTES = 256 << 20
MAX_DIMS = 64  # torch has no more
_CLASSES = "torch.distributed.checkpoint.metadata"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"
# what torch writes for plain, sharded and optimizer state, and for the folder's own path, and what
# Megatron-core writes in the place of torch's
ALLOWED = {
    (_MEGATRON, "MCoreMetadata"),
    (_MEGATRON, "MCoreSavePlan"),
    *(
        ("torch.distributed.checkpoint.planner", name)
        for name in ("WriteItem", "WriteItemType", "TensorWriteData")
    ),
    (_CLASSES, "BytesStorageMetadata"),
    (_CLASSES, "ChunkStorageMetadata"),
    (_CLASSES, "Metadata"),
    (_CLASSES, "MetadataIndex"),
    (_CLASSES, "StorageMeta"),
    (_CLASSES, "TensorProperties"),
    (_CLASSES, "TensorStorageMetadata"),
    (_CLASSES, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
}
DTYPES = {
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"),
}
# of protocols 2 to 5; not those for foreign objects, registered extensions and shared buffers
OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.MEMOIZE),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.GLOBAL, pickle.STACK_GLOBAL),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS),
)
# what a pickle that is cut short or makes no sense raises
DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class StoredPart:
    """Part of a tensor: where in the tensor it begins, its shape, and where in which file."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    first_byte: int
    size_bytes: int


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: global shape, dtype by torch's name, and the parts that the files hold."""

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[StoredPart, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted({part.file for part in self.parts}))


@dataclass(frozen=True)
class StoredFolder:
    """The content of a folder. `objects` are pickled values beside the tensors, never read."""

    tensors: dict[str, StoredTensor]
    objects: tuple[str, ...]


def is_distributed(folder: Path) -> bool:
    """Return whether a folder is a torch.distributed.checkpoint."""
    return (folder / METADATA).is_file()


def read_metadata(folder: Path) -> StoredFolder:
    """Return what a torch.distributed.checkpoint folder holds.

    Raises: StageError naming what `.metadata` must not refer to, or that it is damaged.
    """
    path = folder / METADATA
    try:
        size_bytes = size_of(path)
        if size_bytes > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MB")
        with path.open("rb") as file:
            return _content(_InertUnpickler(file).load())
    except _Refused as error:
        raise StageError(
            f"{path} refers to {error}, which no checkpoint needs and which could run code; "
            f"nothing was run, do not load this folder elsewhere"
        ) from None
    except OSError as error:
        raise StageError(f"{path} cannot be read ({error.strerror})") from error
    except DAMAGE as error:
        raise StageError(f"{path} is damaged ({shown(error)})") from error


class _Refused(Exception):
    """A pickle names something outside ALLOWED."""


@dataclass(frozen=True)
class _Name:
    """What a pickle calls a class or a function."""

    module: str
    name: str


@dataclass(eq=False)
class _Record:
    """An object of a pickle, never made: what it would be called with, and its fields."""

    name: str
    arguments: Any
    state: Any = None


class _Table(dict[Any, Any]):
    """A dict with plain keys: others can be made to collide, or to exhaust the stack."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, (str, _Record)):
            raise TypeError("a name is no text")
        super().__setitem__(key, value)


class _InertUnpickler(pickle._Unpickler):
    """The interpreter in Python, since it can be bared of operations: a table names each."""

    stack: list[Any]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in OPCODES
    }

    def find_class(self, module: str, name: str) -> _Name:
        is_dtype = module == "torch" and name in DTYPES
        if not is_dtype and (module, name) not in ALLOWED:
            raise _Refused(shown(f"{module}.{name}"))
        return _Name(module, name)

    def make(self) -> None:
        """Put a record where the pickle asks for a call."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name):
            raise TypeError("it calls a value")
        self.append(_Record(name.name, arguments))

    def fill(self) -> None:
        """Keep the state that the pickle gives an object."""
        state, record = self.stack.pop(), self.stack[-1]
        if not isinstance(record, _Record):
            raise TypeError("it changes a value")
        record.state = state

    def open_table(self) -> None:
        self.append(_Table())

    dispatch[pickle.REDUCE[0]] = make
    dispatch[pickle.NEWOBJ[0]] = make
    dispatch[pickle.BUILD[0]] = fill
    dispatch[pickle.EMPTY_DICT[0]] = open_table


def _content(metadata: Any) -> StoredFolder:
    fields = _fields(metadata, "Metadata", "MCoreMetadata")
    # where each part of a tensor lies: file, first byte, number of bytes
    places: dict[tuple[str, Any], tuple[str, int, int]] = {}
    for index, info in fields["storage_data"].items():
        key, place = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
        if place.get("transform_descriptors"):
            raise TypeError("parts are stored in another form")
        begin = key.get("offset")  # None of an object
        places[_text(key["fqn"]), begin and _lengths(begin)] = (
            plain_name(place["relative_path"]),
            _length(place["offset"]),
            _length(place["length"]),
        )
    tensors, objects = {}, []
    for key, entry in fields["state_dict_metadata"].items():
        name = _text(key)
        if isinstance(entry, _Record) and entry.name == "BytesStorageMetadata":
            objects.append(name)
        else:
            tensors[name] = _tensor(name, _fields(entry, "TensorStorageMetadata"), places)
    return StoredFolder(tensors, tuple(objects))


def _tensor(name: str, fields: dict[str, Any], places: dict[Any, Any]) -> StoredTensor:
    # the properties are a tuple, dtype first
    dtype = fields["properties"].state[0]
    if dtype.name not in DTYPES:
        raise TypeError("a tensor without dtype")
    parts = []
    for chunk in fields["chunks"]:
        part = _fields(chunk, "ChunkStorageMetadata")
        offset = _lengths(part["offsets"])
        place = places[name, offset]
        parts.append(StoredPart(offset, _lengths(part["sizes"]), *place))
    return StoredTensor(_lengths(fields["size"]), dtype.name, tuple(parts))


def _lengths(size: Any) -> tuple[int, ...]:
    """Return what a torch.Size((...)) holds."""
    (shape,) = size.arguments
    if len(shape) > MAX_DIMS:
        raise TypeError("a tensor of too many axes")
    return tuple(map(_length, shape))


def _length(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("a length is no number")
    return value


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError("a name is no text")
    return name


def _fields(record: Any, *names: str) -> dict[str, Any]:
    is_one = isinstance(record, _Record) and record.name in names
    if not is_one or type(record.state) is not _Table:
        raise TypeError(f"no {names[0]} where one belongs")
    return record.state
