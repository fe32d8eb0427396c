"""Copies of the small samples in which some are other than they were rendered.

Each is sealed as a sample that was written so, not one that was damaged later.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from small_runs import SAMPLES

from cosmos_hydra import files
from cosmos_hydra.data.loader import sample_ids
from cosmos_hydra.data.store import SampleStore, open_store
from cosmos_hydra.reading import SEAL, sealed


def poisoned(small_samples: Path, folder: Path, value: float, step: int = 2) -> list[str]:
    """Copy the samples, spoil the second of the two of a step, and return the step's ids."""
    store = copied(small_samples, folder)
    ids = sample_ids(store.splits["train"], 0, step, 2)
    file = store.layout.folder / f"{ids[1]}.video_latent.safetensors"
    latent = load_file(file)["video_latent"]
    latent[0, 0, 0, 0] = value
    save_file({"video_latent": latent}, file)
    digests = json.loads(store.layout.info(ids[1]).read_text())["files"]
    change_info(store, ids[1], files={**digests, file.name: files.sha256_of(file)})
    return ids


def copied(small_samples: Path, folder: Path) -> SampleStore:
    """Return a copy of the samples below a folder."""
    shutil.copytree(small_samples / SAMPLES, folder / SAMPLES)
    return open_store(str(folder / SAMPLES))


def change_info(store: SampleStore, sample_id: str, **facts: Any) -> None:
    """Change facts of a sample."""
    path = store.layout.info(sample_id)
    before = json.loads(path.read_text())
    del before[SEAL]
    path.write_bytes(sealed({**before, **facts}))
