"""Files of somebody else are data: whatever lies in them, none of it runs, and one line says so."""

import pickle
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hostile_files import (
    CALLS,
    HEADERS,
    JSON,
    NO_FILES,
    PICKLES,
    PTH,
    Builder,
    pickled,
    saved,
)
from places import PLACES, pairs, sound_folder

from cosmos_hydra.errors import ConfigError, CosmosError, StageError

LIMIT_S = 2.0
LIMIT_KB = 1 << 20
SAFETENSORS = [name for name, place in PLACES.items() if place.file.endswith(".safetensors")]
DOCUMENTS = [name for name, place in PLACES.items() if place.file.endswith(".json")]
TENSORS = [name for name, place in PLACES.items() if place.file.endswith(".pth")]
# without the others the folder is read another way
FILES = [name for name in PLACES if not name.endswith("index") and name != "manifest of .pth"]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one of everything that is read; do not write into it."""
    return sound_folder(tmp_path_factory.getbasetemp())


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """Return where a payload would write; nothing may be there afterwards."""
    canary = tmp_path / "canary"
    yield canary
    assert not canary.exists()


def peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@contextmanager
def bounded() -> Iterator[None]:
    """Check that the block takes less than two seconds and less than a gigabyte more."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
    before_kb, began_s = peak_kb(), time.perf_counter()
    yield
    assert time.perf_counter() - began_s < LIMIT_S
    assert peak_kb() - before_kb < LIMIT_KB


def refused(name: str, build: Builder, sound: Path, root: Path, canary: Path) -> str:
    """Put a file in its place in a copy of the sound folder and return the line that ends it."""
    place = PLACES[name]
    shutil.copytree(sound / place.folder, root / place.folder, dirs_exist_ok=True)
    path = place.path(root)
    path.unlink(missing_ok=True)
    build(path, canary)
    with bounded(), pytest.raises(CosmosError) as refusal:
        place.read(root)
    assert isinstance(refusal.value, (ConfigError, StageError))
    message = str(refusal.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 800
    return message


@pytest.mark.parametrize("name", PLACES)
def test_a_sound_file_of_each_kind_is_read(name: str, sound: Path) -> None:
    """What the others refuse is refused for what is in the file."""
    PLACES[name].read(sound)


@pytest.mark.parametrize("name", CALLS)
def test_every_call_does_run_when_it_is_unpickled(name: str, tmp_path: Path) -> None:
    pickled(name)(tmp_path / "file", tmp_path / "canary")
    with (tmp_path / "file").open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(("kind", "name"), pairs(PICKLES, PLACES))
def test_no_pickle_runs_wherever_it_lies(
    kind: str, name: str, sound: Path, tmp_path: Path, canary: Path
) -> None:
    refused(name, PICKLES[kind], sound, tmp_path, canary)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", [*TENSORS, "dcp metadata", "checkpoint metadata"])
def test_no_call_runs_where_pickles_are_read(
    name: str, call: str, sound: Path, tmp_path: Path, canary: Path
) -> None:
    build = saved(CALLS[call]) if name in TENSORS else pickled(call, 4)
    message = refused(name, build, sound, tmp_path, canary)
    if name not in TENSORS:
        assert " refers to " in message
        assert message.endswith("nothing was run, do not load this folder elsewhere")


@pytest.mark.parametrize("kind", PTH)
def test_a_torch_file_that_is_no_plain_tensor_is_refused(
    kind: str, sound: Path, tmp_path: Path, canary: Path
) -> None:
    message = refused("latent .pth", PTH[kind], sound, tmp_path, canary)
    assert message.endswith(
        "(0.video_latent.pth is damaged); remove the folder and preprocess again"
    )


@pytest.mark.parametrize(("kind", "name"), pairs(HEADERS, SAFETENSORS))
def test_a_crafted_header_is_refused(
    kind: str, name: str, sound: Path, tmp_path: Path, canary: Path
) -> None:
    refused(name, HEADERS[kind], sound, tmp_path, canary)


@pytest.mark.parametrize(("kind", "name"), pairs(JSON, DOCUMENTS))
def test_json_without_measure_is_refused(
    kind: str, name: str, sound: Path, tmp_path: Path, canary: Path
) -> None:
    refused(name, JSON[kind], sound, tmp_path, canary)


@pytest.mark.parametrize(("kind", "name"), pairs(NO_FILES, FILES))
def test_what_is_no_file_is_refused_and_not_waited_for(
    kind: str, name: str, sound: Path, tmp_path: Path, canary: Path
) -> None:
    refused(name, NO_FILES[kind], sound, tmp_path, canary)
