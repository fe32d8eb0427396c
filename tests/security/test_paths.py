"""Names in files lead nowhere: what a manifest or an index names lies below its folder, or is not
read at all. Links out of a folder of samples are not followed, those of a Hub cache are."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import PLACES, STEP, pairs, sound_folder
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from watching import untouched

from cosmos_hydra.claim import claim
from cosmos_hydra.config import DataConfig, SampleFormat
from cosmos_hydra.data.layout import Layout
from cosmos_hydra.data.sources.folder import find_episodes
from cosmos_hydra.data.store import open_store
from cosmos_hydra.data.writer import Texts
from cosmos_hydra.errors import ConfigError, CosmosError, StageError
from cosmos_hydra.models.text import TextEmbedding
from cosmos_hydra.weights.diffusers import WEIGHTS

# where the canary of each place lies, seen from it, is put in for OUT
NAMES: dict[str, Any] = {
    "above": "OUT",
    "through itself": "./OUT",
    "through a folder": "text/../OUT",
    "through a folder that is not there": "x/../OUT",
    "absolute": "/ROOT",
    "absolute, two slashes": "//ROOT",
    "a url": "file:///ROOT",
    "another url": "https://localhost/canary.safetensors",
    "backslashes": "..\\..\\outside\\canary.safetensors",
    "a drive": "C:\\outside\\canary.safetensors",
    "a share": "\\\\host\\share\\canary.safetensors",
    "home": "~/canary.safetensors",
    "a variable": "${oc.env:HOME}/canary.safetensors",
    "a template": "{x.__class__}.safetensors",
    "a pattern": "*.safetensors",
    "a command": "$(touch canary).safetensors",
    "a pipe": "| touch canary",
    "nul": "canary.safetensors\0",
    "nul behind": "OUT\0.safetensors",
    "newline": "a\nb.safetensors",
    "escape": "\x1b[31m.safetensors",
    "right to left": "\u202esrotasnetefas.x",
    "half a character": "\ud800.safetensors",
    "a long name": "a" * 5000,
    "a long path": "a/" * 5000 + "x",
    "empty": "",
    "dot": ".",
    "dots": "..",
    "slash": "/",
    "a device": "/dev/zero",
    "a process": "/proc/self/environ",
    "number": 7,
    "fraction": 0.5,
    "truth": True,
    "null": None,
    "list": ["OUT"],
    "object": {"OUT": "OUT"},
}
# plain names all the same, of files that are not there
HARMLESS = ("a template", "a pattern", "a command", "a pipe")
TEXTS = [name for name, value in NAMES.items() if isinstance(value, str)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one of everything that is read; do not write into it."""
    return sound_folder(tmp_path_factory.getbasetemp())


@pytest.fixture
def outside(sound: Path, tmp_path: Path) -> Path:
    """Return a folder with a file that each place would take."""
    outside = tmp_path / "outside"
    outside.mkdir()
    text = PLACES["text"].path(sound)
    for name in ("canary.safetensors", "canary", "canary.info.json"):
        shutil.copy(text, outside / name)
    return outside


def copied(sound: Path, folder: str, tmp_path: Path) -> Path:
    shutil.copytree(sound / folder, tmp_path / "root" / folder)
    return tmp_path / "root"


def filled(value: Any, outside: Path, below: Path) -> Any:
    """Return a name with the way from the folder `below` to the canary put in."""
    if not isinstance(value, str):
        return value
    canary = outside / "canary.safetensors"
    value = value.replace("/ROOT", str(canary))
    return value.replace("OUT", os.path.relpath(canary, below))


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def _text(root: Path, name: Any) -> None:
    path = root / "samples/data/0.info.json"
    path.write_text(json.dumps({"height": 48, "width": 64, "text": name}))


def _id(root: Path, name: Any) -> None:
    path = root / "samples/data/manifest.json"
    entries = json.loads(path.read_text())["samples"]
    entries[0]["id"] = name
    edit(path, samples=entries)


def _file(root: Path, name: Any) -> None:
    path = root / STEP / "manifest.json"
    edit(path, files={**json.loads(path.read_text())["files"], name: "0"}, sha256="0")


def _index(file: str) -> Callable[[Path, Any], None]:
    return lambda root, name: edit(root / f"{file}.index.json", weight_map={"x": name})


def _dcp(root: Path, name: Any) -> None:
    index = {MetadataIndex("x"): _StorageInfo(name, 0, 1)}
    (root / "dcp/.metadata").write_bytes(pickle.dumps(Metadata({}, None, index)))


def _first(root: Path) -> None:
    store = open_store(str(root / "samples/data"))
    store.load(store.splits["train"][0])


# folder the name is relative to, what writes the name, and what reads it
WRITERS: dict[str, tuple[str, Callable[[Path, Any], None], Callable[[Path], object]]] = {
    "text of a sample": ("samples/data", _text, PLACES["info"].read),
    "id of a sample": ("samples/data", _id, _first),
    "file of a checkpoint": (STEP, _file, PLACES["checkpoint manifest"].read),
    "shard of a transformer": (
        "diffusers",
        _index(f"diffusers/{WEIGHTS}"),
        PLACES["weights index"].read,
    ),
    "shard of a text encoder": ("t5", _index("t5/model.safetensors"), PLACES["t5 index"].read),
    "shard of a tokenizer": ("vae", _index(f"vae/{WEIGHTS}"), PLACES["vae index"].read),
    "file of a distributed checkpoint": ("dcp", _dcp, PLACES["dcp metadata"].read),
}


@pytest.mark.parametrize(("name", "where"), pairs(NAMES, WRITERS))
def test_a_name_that_is_no_plain_one_is_refused_and_nothing_touched(
    name: str, where: str, sound: Path, outside: Path, tmp_path: Path
) -> None:
    below, write, read = WRITERS[where]
    if where == "file of a checkpoint" and name not in TEXTS:
        pytest.skip("keys of JSON are texts")
    root = copied(sound, below.partition("/")[0], tmp_path)
    write(root, filled(NAMES[name], outside, root / below))
    if where == "file of a distributed checkpoint" and name in HARMLESS:
        with untouched(outside, root):
            read(root)
        return
    with untouched(outside, root), pytest.raises(CosmosError) as refusal:
        read(root)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 800


@pytest.mark.parametrize("name", TEXTS)
def test_a_table_of_captions_leads_nowhere(name: str, outside: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.mp4").touch()
    table = root / "captions.jsonl"
    value = filled(NAMES[name], outside, root)
    table.write_text(json.dumps({"video": value, "caption": "x"}) + "\n")
    data = DataConfig(name="x", source=str(root), captions=str(table), prompt="y")
    problem, found = "", None
    with untouched(outside, root):
        try:
            found = find_episodes(data)
        except ConfigError as error:
            problem = str(error)
    assert problem.isprintable()
    if found is not None:
        assert [episode.name for episode in found.episodes] == ["a.mp4"]
        assert len(found.failed) == 1


def link(path: Path, target: Path) -> None:
    """Replace a file or a folder by a link to its content elsewhere."""
    shutil.move(path, target)
    path.symlink_to(target)


LINKS = {
    "latent": PLACES["latent"],
    "text": PLACES["text"],
    "info": PLACES["info"],
    "sample manifest": PLACES["sample manifest"],
    "fitted tokenizer": PLACES["fitted tokenizer"],
    "latent .pth": PLACES["latent .pth"],
    "manifest of .pth": PLACES["manifest of .pth"],
    "checkpoint manifest": PLACES["checkpoint manifest"],
    "checkpoint tokenizer": PLACES["checkpoint manifest"],
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_out_of_the_folder_is_not_followed(name: str, sound: Path, tmp_path: Path) -> None:
    place = PLACES[name]
    root = copied(sound, place.folder, tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    link(place.path(root), outside / "canary")
    with (
        untouched(outside, root),
        pytest.raises(StageError, match=r"is a link that leads out of the folder"),
    ):
        LINKS[name].read(root)


def test_a_linked_folder_is_not_followed(sound: Path, tmp_path: Path) -> None:
    for below, read in (("samples/data/text", "info"), (f"{STEP}/state", "checkpoint state")):
        root = copied(sound, below.partition("/")[0], tmp_path)
        outside = tmp_path / below.replace("/", "-")
        link(root / below, outside)
        with untouched(outside, root), pytest.raises(StageError, match=r"is a link that leads"):
            PLACES["checkpoint manifest" if read == "checkpoint state" else read].read(root)


def test_captions_are_not_written_through_a_link(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "text").symlink_to(outside)
    text = TextEmbedding(torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bool))
    texts = Texts(Layout(root, SampleFormat.safetensors), {"kind": "hash"})
    with untouched(outside, root), pytest.raises(ValueError, match="is a link that leads out"):
        texts.write("a caption", text)


def test_a_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "canary").write_text("kept")
    (root / ".lock").symlink_to(outside / "canary")
    with (
        untouched(outside, root),
        pytest.raises(StageError, match=r"root/\.lock is a link; remove it$"),
        claim(root / ".lock", "name=x"),
    ):
        pass
    assert (outside / "canary").read_text() == "kept"


@pytest.mark.parametrize("name", ["samples", "run", "diffusers", "t5", "vae"])
def test_a_hub_cache_whose_files_are_links_is_read(name: str, sound: Path, tmp_path: Path) -> None:
    """Snapshots of a Hugging Face cache hold links to ../../blobs."""
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123abc", tmp_path / "models--a--b/blobs"
    shutil.copytree(sound / name, snapshot / name)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.rglob("*"))):
        if file.is_file():
            link(file, blobs / str(number))
    read = [place for place in PLACES.values() if place.folder == name]
    for place in read if name != "run" else [PLACES["checkpoint manifest"]]:
        place.read(snapshot)


def test_the_watch_sees_python_and_native_code(sound: Path, outside: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    canary = outside / "canary.safetensors"
    with pytest.raises(AssertionError), untouched(outside, tmp_path):
        canary.read_bytes()
    with pytest.raises(AssertionError), untouched(outside, tmp_path):
        load_file(canary)
    with pytest.raises(AssertionError), untouched(outside, tmp_path / "root"):
        (tmp_path / "written").touch()
