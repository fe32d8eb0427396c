"""Hashes of videos are computed once, as long as size and time stay."""

import os
import time
from pathlib import Path

import pytest

from cosmos_hydra import files
from cosmos_hydra.data.digests import Digests


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return which files have been read."""
    found: list[Path] = []
    read = files.sha256_of

    def counted(path: Path) -> str:
        found.append(path)
        return read(path)

    monkeypatch.setattr(files, "sha256_of", counted)
    return found


def written(path: Path, content: bytes, age_s: float = 60.0) -> Path:
    path.write_bytes(content)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_an_unchanged_video_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    video, memory = written(tmp_path / "a.mp4", b"one"), tmp_path / "hashes.json"
    first = Digests(memory)
    digest = first.sha256_of(video)
    first.save()
    assert Digests(memory).sha256_of(video) == digest == files.sha256_of(video)
    assert len(reads) == 2  # the last one is this test's own
    memory.unlink()
    Digests(memory).sha256_of(video)
    assert len(reads) == 3


@pytest.mark.parametrize(("content", "age_s"), [(b"other", 60.0), (b"two", 30.0)])
def test_another_size_or_time_is_read_again(
    content: bytes, age_s: float, tmp_path: Path, reads: list[Path]
) -> None:
    video, memory = written(tmp_path / "a.mp4", b"one"), tmp_path / "hashes.json"
    first = Digests(memory)
    before = first.sha256_of(video)
    first.save()
    written(video, content, age_s)
    assert Digests(memory).sha256_of(video) not in ("", before)
    assert len(reads) == 2


def test_a_video_that_may_still_be_changing_is_not_remembered(
    tmp_path: Path, reads: list[Path]
) -> None:
    video, memory = written(tmp_path / "a.mp4", b"one", age_s=0.0), tmp_path / "hashes.json"
    for _ in range(2):
        digests = Digests(memory)
        digests.sha256_of(video)
        digests.save()
    assert len(reads) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"PATH": 1}', '{"PATH": [3, 4]}'])
def test_a_damaged_memory_is_one_that_is_empty(damage: str, tmp_path: Path) -> None:
    video, memory = written(tmp_path / "a.mp4", b"one"), tmp_path / "hashes.json"
    memory.write_text(damage.replace("PATH", str(video)))
    digests = Digests(memory)
    assert digests.sha256_of(video) == files.sha256_of(video)
    digests.save()
    assert list(Digests(memory).known) == [str(video)]


def test_a_video_that_cannot_be_read_has_no_hash(tmp_path: Path) -> None:
    assert Digests(tmp_path / "hashes.json").sha256_of(tmp_path / "gone.mp4") == ""
