"""data.format=nemo: four files a sample and nothing else, read as the NeMo data module reads."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from raw_videos import small_config, write_moving_video

from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.data.store import open_store
from cosmos_hydra.errors import StageError

CPU = torch.device("cpu")
TENSORS = ("video_latent", "t5_text_embeddings", "t5_text_mask")


def read_as_nemo(folder: Path) -> list[dict[str, Any]]:
    """Read a folder as NeMo's diffusion data module does: every file name counts."""
    ids = sorted({path.name.split(".")[0] for path in folder.iterdir()})
    samples = []
    for sample_id in ids:
        sample: dict[str, Any] = {
            name: torch.load(folder / f"{sample_id}.{name}.pth", weights_only=True)
            for name in TENSORS
        }
        sample["id"] = sample_id
        sample["info"] = json.loads((folder / f"{sample_id}.info.json").read_text())
        samples.append(sample)
    return samples


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the samples of six videos, clips of 9 frames."""
    root = tmp_path_factory.mktemp("nemo")
    for number in range(6):
        path = root / "raw" / f"{number}.mp4"
        write_moving_video(path, seed=number)
        path.with_suffix(".txt").write_text(f"caption {number}")
    overrides = ["data.frames=9", "model.text_tokens=512", "data.format=nemo"]
    prepare(small_config(root, *overrides), CPU)
    return root


def test_the_folder_holds_four_files_a_sample_and_nothing_else(root: Path) -> None:
    manifest = json.loads((root / "samples.manifest.json").read_text())
    ids = [entry["id"] for entry in manifest["samples"]]
    assert len(set(ids)) == 12
    wanted = {
        f"{sample_id}.{name}"
        for sample_id in ids
        for name in ("info.json", *(f"{tensor}.pth" for tensor in TENSORS))
    }
    assert {path.name for path in (root / "samples").iterdir()} == wanted
    # the hashes of videos are kept once these are two seconds old
    assert {path.name for path in root.iterdir()} - {"samples.hashes.json"} == {
        "raw",
        "samples",
        "samples.manifest.json",
        "samples.text",
        f"samples.{manifest['fitted_tokenizer']}",
    }


def test_the_nemo_reader_gets_what_it_expects(root: Path) -> None:
    samples = read_as_nemo(root / "samples")
    store = open_store(str(root / "samples"))
    assert [sample["id"] for sample in samples] == sorted(store.captions)
    for sample in samples:
        latent_CFHW = sample["video_latent"]
        assert (latent_CFHW.shape, latent_CFHW.dtype) == ((16, 2, 6, 8), torch.bfloat16)
        text_TD = sample["t5_text_embeddings"]
        assert (text_TD.shape, text_TD.dtype) == ((512, 1024), torch.bfloat16)
        mask_T = sample["t5_text_mask"]
        assert torch.equal(mask_T, torch.ones(512, dtype=torch.bfloat16))
        info = sample["info"]
        assert (info["height"], info["width"], info["num_frames"]) == (48, 64, 9)
        assert (info["fps"], info["video_path"][1:]) == (12.0, ".mp4")
        # no tensor drags a larger storage along
        for name in TENSORS:
            size = (root / "samples" / f"{sample['id']}.{name}.pth").stat().st_size
            assert size < 2 * sample[name].numel() + 2000


def test_a_folder_of_the_old_script_is_read_without_a_manifest(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(root / "samples", folder)
    store = open_store(str(folder))
    assert store.splits["train"] == [sample["id"] for sample in read_as_nemo(folder)]
    assert store.splits["held_out"] == []
    with_manifest = open_store(str(root / "samples"))
    for sample_id in store.splits["train"]:
        sample = store.load(sample_id)
        assert torch.equal(sample.latent_CFHW, with_manifest.load(sample_id).latent_CFHW)
        assert sample.fps == 12.0
        assert not sample.padding_1HW.any()


def test_an_unfinished_folder_of_ours_is_not_taken_for_one(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "samples", tmp_path / "cache")
    (tmp_path / "cache.plan.json").write_text("{}")
    with pytest.raises(
        StageError, match=r"holds no samples \(no manifest.json\); run: cosmos-hydra"
    ):
        open_store(str(tmp_path / "cache"))


def test_ids_may_be_any_text_before_the_first_dot(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    one = open_store(str(root / "samples")).splits["train"][0]
    for name in ("b_clip", "a-clip", "10"):
        for file in (root / "samples").glob(f"{one}.*"):
            shutil.copy(file, folder / file.name.replace(one, name, 1))
    store = open_store(str(folder))
    assert store.splits["train"] == ["10", "a-clip", "b_clip"]
    assert store.load("a-clip").latent_CFHW.shape == (16, 2, 6, 8)


def test_text_embeddings_shared_by_samples_are_in_every_sample(root: Path) -> None:
    samples = {sample["id"]: sample for sample in read_as_nemo(root / "samples")}
    manifest = json.loads((root / "samples.manifest.json").read_text())
    videos = {entry["id"]: entry["video"] for entry in manifest["samples"]}
    for one in samples:
        for other in samples:
            texts = [samples[key]["t5_text_embeddings"] for key in (one, other)]
            assert torch.equal(*texts) == (videos[one] == videos[other])
