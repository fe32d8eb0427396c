"""Samples on disk: one clip's latent, text embedding and facts each, and a manifest.

`safetensors` (ours): `{i}.info.json` and `{i}.video_latent.safetensors`; text embeddings once per
caption below `text/`, named in info.json. `nemo`: exactly the four files that the NeMo data module
reads, `{i}.info.json {i}.video_latent.pth {i}.t5_text_embeddings.pth {i}.t5_text_mask.pth`, and the
manifest beside the folder, since that reader takes every file for a sample.
info.json is written last: a sample without it does not count.
"""

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cosmos_hydra import files
from cosmos_hydra.config import SampleFormat
from cosmos_hydra.data.clips import HELD_OUT, TRAIN
from cosmos_hydra.errors import StageError
from cosmos_hydra.models.text import TextEmbedding

FORMAT_VERSION = 1
# what readers of JSON, safetensors and pickle files raise for a damaged one
DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Layout:
    """Where the files of a sample folder lie."""

    folder: Path
    format: SampleFormat

    def beside(self, name: str) -> Path:
        """Return the path of a file about the whole folder."""
        if self.format is SampleFormat.nemo:
            return self.folder.with_name(f"{self.folder.name}.{name}")
        return self.folder / name

    @property
    def manifest(self) -> Path:
        return self.beside("manifest.json")

    @property
    def tokenizer(self) -> Path:
        """Return where a fitted tokenizer is stored."""
        return self.beside("tokenizer.safetensors")

    @property
    def lock(self) -> Path:
        """Return the file that a process holds while it writes here."""
        return self.beside("lock" if self.format is SampleFormat.nemo else ".lock")

    def info(self, sample_id: str) -> Path:
        return self.folder / f"{sample_id}.info.json"


class SampleWriter:
    """Write samples crash-safely; text embeddings are written once per caption where possible."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def write(
        self, sample_id: str, info: dict[str, Any], latent_CFHW: torch.Tensor, text: TextEmbedding
    ) -> None:
        """Write one sample; latent as bfloat16."""
        folder = self.layout.folder
        latent_CFHW = latent_CFHW.to("cpu", torch.bfloat16).contiguous()
        if self.layout.format is SampleFormat.nemo:
            tensors = {
                "video_latent": latent_CFHW,
                "t5_text_embeddings": text.embedding_TD,
                # the reader's own files hold ones, whatever the caption's length
                "t5_text_mask": torch.ones(len(text.mask_T), dtype=torch.bfloat16),
            }
            for name, tensor in tensors.items():
                files.write_with(folder / f"{sample_id}.{name}.pth", _saver(tensor))
        else:
            info = {**info, "text": self._write_text(text)}
            latent = folder / f"{sample_id}.video_latent.safetensors"
            files.write_with(latent, lambda path: save_file({"video_latent": latent_CFHW}, path))
        files.write_json(self.layout.info(sample_id), info)

    def _write_text(self, text: TextEmbedding) -> str:
        content = text.embedding_TD.view(torch.int16).numpy().tobytes()
        name = f"text/{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
        path = self.layout.folder / name
        if not path.is_file():
            tensors = {
                "t5_text_embeddings": text.embedding_TD.contiguous(),
                "t5_text_mask": text.mask_T.contiguous(),
            }
            files.write_with(path, lambda temporary: save_file(tensors, temporary))
        return name


def _saver(tensor: torch.Tensor) -> Callable[[Path], None]:
    return lambda path: torch.save(tensor, path)


@dataclass(frozen=True)
class Sample:
    """One sample in memory, on the CPU.

    latent_CFHW bfloat16 with unit deviation; text_TD bfloat16; padding_1HW float32, 1 = padding,
    at latent resolution; fps of the clip.
    """

    id: str
    latent_CFHW: torch.Tensor
    text_TD: torch.Tensor
    padding_1HW: torch.Tensor
    fps: float
    caption: str


class SampleStore:
    """Read access to a folder of samples."""

    def __init__(self, layout: Layout, manifest: dict[str, Any]) -> None:
        self.layout = layout
        self.manifest = manifest
        self.splits: dict[str, list[str]] = {TRAIN: [], HELD_OUT: []}
        for entry in manifest["samples"]:
            self.splits[entry["split"]].append(entry["id"])
        self.captions = {entry["id"]: entry.get("caption", "") for entry in manifest["samples"]}
        self._texts: dict[str, torch.Tensor] = {}

    @property
    def content_hash(self) -> str:
        """Return a hash of what the samples are: config, sources, plan, encoders."""
        return str(self.manifest["content_hash"])

    def name_of(self, sample_id: str) -> str:
        """Return a sample's id with the clip it is, for messages."""
        entry = next(e for e in self.manifest["samples"] if e["id"] == sample_id)
        if "video" not in entry:
            return sample_id
        return f"{sample_id} ({entry['video']} from frame {entry['start_frame']})"

    def load(self, sample_id: str) -> Sample:
        """Return one sample. Raises: StageError naming the file that is missing or damaged."""
        try:
            return self._load(sample_id)
        except (OSError, ValueError, KeyError) as error:
            raise StageError(
                f"data.path={self.layout.folder} sample {sample_id} cannot be read ({error}); "
                f"remove the folder and preprocess again"
            ) from error

    def _load(self, sample_id: str) -> Sample:
        info = _read(self.layout.info(sample_id), lambda path: dict(json.loads(path.read_text())))
        folder = self.layout.folder
        if self.layout.format is SampleFormat.nemo:
            latent_CFHW = _read(folder / f"{sample_id}.video_latent.pth", _load_pth)
            text_TD = _read(folder / f"{sample_id}.t5_text_embeddings.pth", _load_pth)
        else:
            latent = folder / f"{sample_id}.video_latent.safetensors"
            latent_CFHW = _read(latent, lambda path: load_file(path)["video_latent"])
            text_TD = self._text(info["text"])
        return Sample(
            id=sample_id,
            latent_CFHW=latent_CFHW,
            text_TD=text_TD,
            padding_1HW=_padding(info, latent_CFHW.shape[-2:]),
            fps=float(info.get("fps", 24.0)),
            caption=self.captions.get(sample_id, ""),
        )

    def _text(self, name: str) -> torch.Tensor:
        if name not in self._texts:
            path = (self.layout.folder / name).resolve()
            if not path.is_relative_to(self.layout.folder.resolve()):
                raise ValueError(f"text file {name} lies outside the folder")
            self._texts[name] = _read(path, lambda path: load_file(path)["t5_text_embeddings"])
        return self._texts[name]


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    """Return what `read` makes of a file. Raises: ValueError or OSError naming it."""
    try:
        return read(path)
    except DAMAGE as error:
        raise ValueError(f"{path.name} is damaged") from error


def _load_pth(path: Path) -> torch.Tensor:
    tensor = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(tensor, torch.Tensor):
        raise TypeError("no tensor")
    return tensor


def _padding(info: dict[str, Any], size: tuple[int, int]) -> torch.Tensor:
    """Return the padding mask at latent resolution; a cell that is partly content is content."""
    box = info.get("content")
    if box is None:
        return torch.zeros(1, *size)
    factor = info["height"] // size[0]
    mask_1HW = torch.ones(1, *size)
    top, left = box["top"] // factor, box["left"] // factor
    bottom = -(-(box["top"] + box["height"]) // factor)
    right = -(-(box["left"] + box["width"]) // factor)
    mask_1HW[:, top:bottom, left:right] = 0.0
    return mask_1HW


def open_store(path: str) -> SampleStore:
    """Return the samples of a folder: ours in either format, or the guide's four files a sample.

    Raises: StageError when there are none.
    """
    folder = Path(path).expanduser()
    for sample_format in SampleFormat:
        layout = Layout(folder, sample_format)
        if layout.manifest.is_file():
            return SampleStore(layout, _read_manifest(layout.manifest))
    layout = Layout(folder, SampleFormat.nemo)
    is_unfinished = layout.beside("plan.json").is_file()
    ids = [] if is_unfinished else foreign_ids(folder)
    if not ids:
        raise StageError(
            f"data.path={path} holds no samples (no manifest.json); run: cosmos-hydra "
            f"stage=preprocess data.path={path} with the same data= and data.source="
        )
    return SampleStore(layout, _foreign_manifest(folder, ids))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise StageError(f"{path} is damaged ({error}); preprocess again") from error
    if manifest.get("format_version") != FORMAT_VERSION:
        raise StageError(
            f"{path} has format_version {manifest.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; preprocess again"
        )
    return dict(manifest)


def foreign_ids(folder: Path) -> list[str]:
    """Return the samples of a folder that the old script wrote, in the NeMo reader's order.

    Ids are the text before the first dot of the file names, sorted as text.
    """
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir() if entry.is_file())
    ids = {name.split(".", 1)[0] for name in names}
    return sorted(
        sample_id
        for sample_id in ids
        if sample_id and (folder / f"{sample_id}.video_latent.pth").is_file()
    )


def _foreign_manifest(folder: Path, ids: list[str]) -> dict[str, Any]:
    return {
        "content_hash": files.sha256_of_json(["foreign", folder.name, ids]),
        "samples": [{"id": sample_id, "split": TRAIN} for sample_id in ids],
        "tokenizer": None,
        "text_encoder": None,
    }
