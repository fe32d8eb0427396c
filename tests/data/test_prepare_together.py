"""Several processes preprocess one folder at once: each sample is made once, whoever dies."""

import json
import random
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from raw_videos import small_config, write_damaged_video, write_moving_video
from workers import Worker, encoded, finish, start, told

from cosmos_hydra.data.prepare import prepare

CPU = torch.device("cpu")
FORMATS = {
    "safetensors": ("data.format=safetensors",),
    "nemo": ("data.format=nemo", "model.text_tokens=512"),
}
NUM_SAMPLES = 48


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with raw videos, and per format what one process makes of them."""
    root = tmp_path_factory.mktemp("made")
    for number in range(8):
        path = root / "raw" / f"{number}.mp4"
        write_moving_video(path, seed=number)
        path.with_suffix(".txt").write_text(["lifts", "turns"][number % 2])
    for name, overrides in FORMATS.items():
        prepare(small_config(root, *ALL, *overrides), CPU)
        (root / name).mkdir()
        for path in root.glob("samples*"):
            path.rename(root / name / path.name)
    return root


ALL = ("data.chunks_per_video=6",)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Return a folder with the raw videos."""
    shutil.copytree(made / "raw", tmp_path / "raw")
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    """Return what there is of samples; places and times are not the same in two folders."""
    found = {}
    for top in folder.glob("samples*"):
        for path in (top, *top.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if not path.is_file() or name.endswith("hashes.json"):
                continue
            found[name] = path.read_bytes()
            if name.endswith("manifest.json"):
                manifest = json.loads(found[name])
                del manifest["config"]
                found[name] = json.dumps(manifest).encode()
    return found


def check_as_one_made_it(root: Path, made: Path, sample_format: str) -> None:
    ours, theirs = content(root), content(made / sample_format)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.parametrize("sample_format", FORMATS)
def test_two_processes_make_every_sample_once(sample_format: str, root: Path, made: Path) -> None:
    overrides = (*ALL, *FORMATS[sample_format])
    workers = [Worker(name, overrides, slow_s=0.05, beside=2) for name in ("one", "two")]
    assert finish(start(root, workers)) == [0, 0]
    by_worker = [encoded(root, worker.name) for worker in workers]
    assert sum(map(len, by_worker)) == NUM_SAMPLES
    assert len(set().union(*by_worker)) == NUM_SAMPLES
    check_as_one_made_it(root, made, sample_format)
    for worker, own in zip(workers, by_worker, strict=True):
        assert own
        # who came second may have found some
        said = "\n".join(told(root, worker.name))
        assert re.search(rf"^made {len(own)} of \d+ samples$", said, re.M)


@pytest.mark.parametrize("sample_format", FORMATS)
def test_one_that_comes_later_joins_and_waits_for_what_the_other_makes(
    sample_format: str, root: Path, made: Path
) -> None:
    overrides = (*ALL, *FORMATS[sample_format])
    first = start(root, [Worker("one", overrides, at=4, do="wait")])
    while not (root / "one.waits").exists():
        time.sleep(0.01)
    second = start(root, [Worker("two", overrides)])
    while len(encoded(root, "two")) < NUM_SAMPLES - 4:
        time.sleep(0.01)
    time.sleep(0.5)
    assert second[0].is_alive()
    assert not list(root.glob("samples/manifest.json"))
    (root / "go").touch()
    assert finish([*first, *second]) == [0, 0]
    assert [len(encoded(root, name)) for name in ("one", "two")] == [4, NUM_SAMPLES - 4]
    assert "made 4 of 48 samples" in told(root, "one")
    sharing = next(line for line in told(root, "two") if line.startswith("sharing samples: "))
    assert sharing.startswith("sharing samples: 45 to make, 3 there, with process ")
    check_as_one_made_it(root, made, sample_format)


def kill_one_of_two(root: Path, made: Path, sample_format: str, draw: random.Random) -> None:
    """Kill one process at a random sample; the other finishes, doing at most one again."""
    overrides = (*ALL, *FORMATS[sample_format])
    workers = [
        Worker("one", overrides, at=draw.randint(1, 16), do="kill", slow_s=0.01, beside=2),
        Worker("two", overrides, slow_s=0.03, beside=2),
    ]
    codes = finish(start(root, workers))
    assert codes[1] == 0
    assert codes[0] in (-9, 0)  # 0 where the other left it less than that
    again = Counter(encoded(root, "one") + encoded(root, "two"))
    assert len(again) == NUM_SAMPLES
    assert again.total() <= NUM_SAMPLES + (codes[0] == -9)
    check_as_one_made_it(root, made, sample_format)


def test_when_one_is_killed_the_other_makes_all(root: Path, made: Path) -> None:
    kill_one_of_two(root, made, "safetensors", random.Random(1))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(50))
def test_when_one_is_killed_the_other_makes_all_fifty_times(
    seed: int, root: Path, made: Path
) -> None:
    kill_one_of_two(root, made, list(FORMATS)[seed % 2], random.Random(seed))


@pytest.mark.parametrize("sample_format", FORMATS)
def test_other_settings_at_the_same_time_are_refused(sample_format: str, root: Path) -> None:
    overrides = (*ALL, *FORMATS[sample_format])
    first = start(root, [Worker("one", overrides, at=1, do="wait")])
    while not (root / "one.waits").exists():
        time.sleep(0.01)
    before = content(root)
    assert finish(start(root, [Worker("two", (*overrides, "data.fit=pad"))])) == [1]
    (refused,) = told(root, "two")
    assert refused.startswith(
        f"data.path={root / 'samples'} is being filled with other samples "
        f"(data.fit: crop -> pad) by process {first[0].pid} on "
    )
    assert refused.endswith("; wait for it to end, or choose another folder")
    assert content(root) == before
    (root / "raw" / "0.txt").write_text("another caption")
    assert finish(start(root, [Worker("three", overrides)])) == [1]
    assert "(video.0.mp4.caption: lifts -> another caption)" in told(root, "three")[-1]
    (root / "go").touch()
    assert finish(first) == [0]


def test_a_video_that_fails_in_one_process_is_left_out_by_all(root: Path) -> None:
    write_damaged_video(root / "raw" / "damaged.mp4", 60, 20, 60)
    overrides = (*ALL, "data.prompt=x")
    workers = [Worker(name, overrides, slow_s=0.05, beside=2) for name in ("one", "two")]
    assert finish(start(root, workers)) == [0, 0]
    manifest = json.loads((root / "samples/manifest.json").read_text())
    assert manifest["failed"] == {"damaged.mp4": "cannot be decoded (damaged frames)"}
    ids = {entry["id"] for entry in manifest["samples"]}
    assert len(ids) == NUM_SAMPLES
    assert {path.name[:33] for path in (root / "samples").glob("*.info.json")} == ids
    said = [line for name in ("one", "two") for line in told(root, name)]
    left_out = "damaged.mp4: cannot be decoded (damaged frames); its clips are left out"
    assert said.count(left_out) == 1
