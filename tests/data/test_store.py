"""Reading samples back: what is in them, and one clear error for each that is damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from raw_videos import small_config, write_moving_video

from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.data.store import open_store
from cosmos_hydra.errors import StageError
from cosmos_hydra.reading import sealed

CPU = torch.device("cpu")
CAPTION = 'A robot, seen from the left, "lifts" (5 kg)'


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the samples of one video in both formats: `ours` and `nemo`."""
    root = tmp_path_factory.mktemp("store")
    write_moving_video(root / "raw" / "a.mp4", seed=0)
    (root / "raw" / "a.txt").write_text(CAPTION)
    for name, sample_format in (("ours", "safetensors"), ("nemo", "nemo")):
        overrides = [f"data.format={sample_format}", "model.text_tokens=512"]
        prepare(small_config(root, f"data.path={root / name}", *overrides), CPU)
    return root


def first_of(folder: Path) -> str:
    """Return the name of the first sample in a folder."""
    manifests = (folder / "manifest.json", folder.with_name("nemo.manifest.json"))
    manifest = next(path for path in manifests if path.is_file())
    return str(json.loads(manifest.read_text())["samples"][0]["id"])


def test_a_sample_has_a_latent_a_text_a_mask_a_rate_and_a_caption(root: Path) -> None:
    first = first_of(root / "ours")
    sample = open_store(str(root / "ours")).load(first)
    assert (sample.id, sample.caption, sample.fps) == (first, CAPTION, 12.0)
    assert (sample.latent_CFHW.shape, sample.latent_CFHW.dtype) == ((16, 1, 6, 8), torch.bfloat16)
    assert (sample.text_TD.shape, sample.text_TD.dtype) == ((512, 1024), torch.bfloat16)
    assert (sample.padding_1HW.shape, sample.padding_1HW.dtype) == ((1, 6, 8), torch.float32)


def test_info_tells_the_size_of_the_clip_and_of_the_source(root: Path) -> None:
    first = first_of(root / "ours")
    info = json.loads((root / "ours" / f"{first}.info.json").read_text())
    text = info.pop("text")
    assert (root / "ours" / text).is_file()
    assert list(info.pop("files")) == [f"{first}.video_latent.safetensors", text]
    assert len(info.pop("sha256")) == 64
    assert info == {
        "height": 48,
        "width": 64,
        "fps": 12.0,
        "num_frames": 1,
        "video_path": "a.mp4",
        "start_frame": info["start_frame"],
        "content": None,
        "source": {"height": 48, "width": 64, "fps": 12.0, "num_frames": 17},
    }


def test_the_manifest_says_what_the_samples_are(root: Path) -> None:
    manifest = open_store(str(root / "ours")).manifest
    assert manifest["format_version"] == 2
    assert manifest["tokenizer"]["kind"] == "toy"
    assert manifest["text_encoder"] == {"kind": "hash", "num_tokens": 512, "dim": 1024}
    assert manifest["config"]["data"]["fit"] == "crop"
    video = manifest["videos"]["a.mp4"]
    assert len(video.pop("sha256")) == 64
    assert video == {
        "num_frames": 17,
        "fps": 12.0,
        "height": 48,
        "width": 64,
        "caption": CAPTION,
        "caption_from": "sidecar",
        "episode": "a.mp4",
        "first_frame": 0,
        "motion_sha256": {},
        "task": None,
    }
    assert [entry["split"] for entry in manifest["samples"]] == ["train", "train", "held_out"]
    assert set(manifest["samples"][0]) == {
        "id",
        "split",
        "video",
        "start_frame",
        "fps",
        "caption",
    }


def test_both_formats_hold_the_same_samples(root: Path) -> None:
    nemo, ours = open_store(str(root / "nemo")), open_store(str(root / "ours"))
    assert nemo.splits == ours.splits
    assert nemo.captions == ours.captions
    for sample_id in nemo.captions:
        one, other = nemo.load(sample_id), ours.load(sample_id)
        assert torch.equal(one.latent_CFHW, other.latent_CFHW)
        assert torch.equal(one.text_TD, other.text_TD)
        assert torch.equal(one.padding_1HW, other.padding_1HW)
        assert (one.fps, one.caption) == (other.fps, other.caption)


FILES = {
    "ours": ["{}.info.json", "{}.video_latent.safetensors", "text/*.safetensors"],
    "nemo": ["{}.info.json", "{}.video_latent.pth", "{}.t5_text_embeddings.pth"],
}
DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "empty": lambda content: b"",
    "list": lambda content: b"[1]",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_error_that_names_it(
    name: str, damage: str, root: Path, tmp_path: Path
) -> None:
    for pattern in FILES[name]:
        folder = tmp_path / pattern.split("/")[0] / name
        shutil.copytree(root / name, folder)
        shutil.copy(root / "nemo.manifest.json", folder.with_name("nemo.manifest.json"))
        (path,) = folder.glob(pattern.format(first_of(folder)))
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
        first = first_of(folder)
        with pytest.raises(StageError) as caught:
            open_store(str(folder)).load(first)
        assert str(caught.value) == (
            f"data.path={folder} sample {first} cannot be read ({path.name} is damaged); "
            f"remove the folder and preprocess again"
        )
        assert caught.value.exit_code == 1


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_error_that_names_it(name: str, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    for pattern in FILES[name]:
        shutil.copytree(root / name, folder)
        shutil.copy(root / "nemo.manifest.json", tmp_path)
        (path,) = folder.glob(pattern.format(first_of(folder)))
        path.unlink()
        with pytest.raises(StageError, match="No such file or directory") as caught:
            open_store(str(folder)).load(first_of(folder))
        assert str(caught.value).startswith(
            f"data.path={folder} sample {first_of(folder)} cannot be read ("
        )
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_changed_byte_anywhere_in_a_sample_is_found(
    count: int, name: str, root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / name
    shutil.copytree(root / name, folder)
    shutil.copy(root / "nemo.manifest.json", tmp_path)
    paths = [next(folder.glob(pattern.format(first_of(folder)))) for pattern in FILES[name]]
    generator = torch.Generator().manual_seed(count)
    for number in range(count):
        path = paths[number % len(paths)]
        whole = path.read_bytes()
        content = bytearray(whole)
        place = int(torch.randint(len(whole), (), generator=generator))
        content[place] ^= 1 + int(torch.randint(255, (), generator=generator))
        path.write_bytes(content)
        with pytest.raises(StageError, match=rf"\({path.name} is damaged\)"):
            open_store(str(folder)).load(first_of(folder))
        path.write_bytes(whole)
    assert open_store(str(folder)).load(first_of(folder)).caption == CAPTION


def test_a_sample_without_hashes_is_read(root: Path, tmp_path: Path) -> None:
    """As other caches are, and those of before."""
    folder = tmp_path / "ours"
    shutil.copytree(root / "ours", folder)
    info = json.loads((folder / f"{first_of(folder)}.info.json").read_text())
    kept = {key: value for key, value in info.items() if key not in ("sha256", "files")}
    (folder / f"{first_of(folder)}.info.json").write_text(json.dumps(kept))
    assert open_store(str(folder)).load(first_of(folder)).fps == 12.0


def test_a_sample_that_makes_no_sense_is_one_error(root: Path, tmp_path: Path) -> None:
    box = {"top": 0, "left": 0, "height": 8, "width": 8}
    for number, (changes, reason) in enumerate(
        (
            ({"fps": 0}, r"fps is 0\.0"),
            ({"fps": float("nan")}, r"fps is nan"),
            ({"fps": [1]}, r"info\.json is misshapen: .*"),
            ({"content": [1]}, r"info\.json is misshapen: .*"),
            ({"content": box, "height": 1}, r"info\.json is misshapen: integer division.*"),
            ({"content": {}, "height": 48}, r"info\.json is misshapen: 'top'"),
            ({"text": None}, r"None is no name of a file below the folder"),
            ({"files": [1]}, r"info\.json is misshapen: .*"),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(root / "ours", folder)
        info = json.loads((folder / f"{first_of(folder)}.info.json").read_text())
        first = first_of(folder)
        path = folder / f"{first}.info.json"
        path.write_bytes(sealed({key: info[key] for key in info if key != "sha256"} | changes))
        with pytest.raises(
            StageError, match=rf"sample {first_of(folder)} cannot be read \({reason}\); remove"
        ):
            open_store(str(folder)).load(first_of(folder))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": None}, "samples is missing or misshapen"),
        ({"samples": []}, "no sample to train on"),
        ({"samples": [7]}, "'int' object has no attribute 'get'"),
        ({"samples": [{"id": "0"}]}, "a sample lacks its video"),
        ({"tokenizer": "toy"}, "tokenizer is missing or misshapen"),
        ({"content_hash": None}, "content_hash is missing or misshapen"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_one_error(
    changes: dict[str, object], reason: str, root: Path, tmp_path: Path
) -> None:
    manifest = json.loads((root / "ours" / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | changes))
    with pytest.raises(StageError) as caught:
        open_store(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / 'manifest.json'} is damaged ({reason}); preprocess again"
    )


def test_tensor_files_are_never_unpickled_into_objects(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nemo"
    shutil.copytree(root / "nemo", folder)
    first = first_of(root / "nemo")
    torch.save({"latent": Path("x")}, folder / f"{first}.video_latent.pth")
    with pytest.raises(StageError, match=r"\(\S+\.video_latent.pth is damaged\)"):
        open_store(str(folder)).load(first)
    torch.save({"latent": torch.zeros(2)}, folder / f"{first}.video_latent.pth")
    with pytest.raises(StageError, match=r"\(\S+\.video_latent.pth is damaged\)"):
        open_store(str(folder)).load(first)


def test_a_text_file_outside_the_folder_is_refused(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    shutil.copytree(root / "ours", folder)
    info = json.loads((folder / f"{first_of(folder)}.info.json").read_text())
    info["text"] = "../secret.safetensors"
    del info["sha256"], info["files"]
    (folder / f"{first_of(folder)}.info.json").write_text(json.dumps(info))
    with pytest.raises(StageError, match=r"\(../secret.safetensors is no name of a file below"):
        open_store(str(folder)).load(first_of(folder))


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_samples_names_the_command_to_run(make: bool, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
        (folder / "notes.md").write_text("empty")
    with pytest.raises(StageError) as caught:
        open_store(str(folder))
    assert str(caught.value) == (
        f"data.path={folder} holds no samples (no manifest.json); run: cosmos-hydra "
        f"stage=preprocess data.path={folder} with the same data= and data.source="
    )


def test_a_manifest_that_is_damaged_or_of_another_version_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text("{")
    with pytest.raises(StageError, match=r"manifest.json is damaged \(.*\); preprocess again$"):
        open_store(str(tmp_path))
    manifest.write_text('{"format_version": 99}')
    with pytest.raises(StageError) as caught:
        open_store(str(tmp_path))
    assert str(caught.value) == (
        f"{manifest} has format_version 99, this program reads 1 and 2; preprocess again"
    )
