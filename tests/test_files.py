"""Crash-safe writes: the old content or the new one, never half, and nothing left over."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from cosmos_hydra import files


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_writer_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "sample.json"
    path.write_text("old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        files.write_with(path, half)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["sample.json"]


def test_the_new_content_replaces_the_old_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sample.mp4"
    path.write_text("old")
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        # some writers choose a format by the suffix
        seen.append((temporary.suffix, temporary.parent, temporary.name.startswith(".")))
        assert path.read_text() == "old"

    files.write_with(path, write)
    assert path.read_text() == "new"
    assert seen == [(".mp4", tmp_path, True)]
    assert names(tmp_path) == ["sample.mp4"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a" / "b" / "c.bin", b"\x00\x01")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"\x00\x01"


def test_content_is_on_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    sync, replace = files.sync, Path.replace

    def noted_sync(path: Path) -> None:
        events.append(("sync", "folder" if path == tmp_path else "content"))
        sync(path)

    def noted_replace(path: Path, target: Path) -> Path:
        events.append(("rename", target.name))
        return replace(path, target)

    monkeypatch.setattr(files, "sync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    files.write_bytes(tmp_path / "x", b"1")
    assert events == [("sync", "content"), ("rename", "x"), ("sync", "folder")]


def test_json_keeps_the_order_of_its_keys(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.json", {"b": 1, "a": [2.5, None]})
    text = (tmp_path / "x.json").read_text()
    assert list(json.loads(text)) == ["b", "a"]
    assert json.loads(text) == {"b": 1, "a": [2.5, None]}
    assert text.endswith("}\n")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "step_000001"
    with files.new_folder(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "weights").write_text("w")
        assert not target.exists()
    assert (target / "inner" / "weights").read_text() == "w"
    assert names(tmp_path) == ["step_000001"]


def fill_half(target: Path) -> None:
    with files.new_folder(target) as temporary:
        (temporary / "weights").write_text("half")
        raise KeyboardInterrupt


def test_a_block_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill_half(tmp_path / "step_000001")
    assert names(tmp_path) == []


def test_a_block_that_fails_leaves_the_folder_that_was_there(tmp_path: Path) -> None:
    target = tmp_path / "step_000001"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fill_half(target)
    assert (target / "weights").read_text() == "old"
    assert names(tmp_path) == ["step_000001"]


def test_an_existing_folder_and_what_a_kill_left_are_replaced(tmp_path: Path) -> None:
    target, left = tmp_path / "step_000001", tmp_path / "step_000001.tmp"
    for folder in (target, left):
        folder.mkdir()
        (folder / f"old-{folder.suffix}").write_text("old")
    with files.new_folder(target) as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["step_000001"]
    assert names(target) == ["new"]


def test_files_are_hashed_as_sha256_whatever_their_size(tmp_path: Path) -> None:
    for size in (0, 1, (1 << 22) + 1):
        content = os.urandom(size)
        (tmp_path / "x").write_bytes(content)
        assert files.sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_the_hash_of_json_ignores_the_order_of_keys_and_nothing_else() -> None:
    first = files.sha256_of_json({"a": 1, "b": [1, 2]})
    assert first == files.sha256_of_json({"b": [1, 2], "a": 1})
    others = [{"a": 1, "b": [2, 1]}, {"a": "1", "b": [1, 2]}, {"a": 1}]
    assert first not in {files.sha256_of_json(other) for other in others}
