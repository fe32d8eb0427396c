"""Samples on disk: one clip's latent, text embedding and facts each, and a manifest.

info.json has the sha256 of the sample's files and of itself, which are checked where they are
there; other caches have none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cosmos_hydra import files
from cosmos_hydra.config import SampleFormat
from cosmos_hydra.data.clips import HELD_OUT, TRAIN
from cosmos_hydra.data.layout import Layout
from cosmos_hydra.errors import StageError
from cosmos_hydra.pth import read_pth
from cosmos_hydra.reading import (
    SEAL,
    contained,
    open_tensors,
    plain_name,
    read_json,
    read_sealed,
    shown,
)

# version 1 called samples 0, 1, ... and its tokenizer tokenizer.safetensors
FORMAT_VERSION = 2
READ_VERSIONS = (1, 2)
MAX_FPS = 1000.0
# what JSON of another shape than expected raises
MISSHAPEN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


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
            self.splits[entry["split"]].append(plain_name(entry["id"]))
        self.captions = {entry["id"]: entry.get("caption", "") for entry in manifest["samples"]}
        self._texts: dict[str, torch.Tensor] = {}
        self._rates: dict[str, float] = {}

    @property
    def content_hash(self) -> str:
        """Return a hash of what the samples are: config, sources, plan, encoders."""
        return str(self.manifest["content_hash"])

    @property
    def fitted_tokenizer(self) -> Path:
        """Return the tokenizer that was fitted on the videos, which may not exist."""
        return self.layout.beside(self.manifest.get("fitted_tokenizer") or "tokenizer.safetensors")

    def name_of(self, sample_id: str) -> str:
        """Return a sample's id with the clip it is, for messages."""
        entry = next(e for e in self.manifest["samples"] if e["id"] == sample_id)
        if "video" not in entry:
            return sample_id
        return f"{sample_id} ({shown(entry['video'])} from frame {shown(entry['start_frame'])})"

    def load(self, sample_id: str) -> Sample:
        """Return one sample. Raises: StageError naming the file that is missing or damaged."""
        with self._naming(sample_id):
            return self._load(sample_id)

    def fps_of(self, sample_id: str) -> float:
        """Return one sample's fps, remembered. Raises: as `load`."""
        if sample_id not in self._rates:
            with self._naming(sample_id):
                self._rates[sample_id] = _fps(self._info(sample_id))
        return self._rates[sample_id]

    @contextmanager
    def _naming(self, sample_id: str) -> Iterator[None]:
        try:
            yield
        except (OSError, *MISSHAPEN) as error:
            if self._is_replaced():
                raise StageError(
                    f"data.path={self.layout.folder} was preprocessed otherwise while its samples "
                    f"were being read, and sample {sample_id} is gone; begin a new run"
                ) from error
            raise StageError(
                f"data.path={self.layout.folder} sample {sample_id} cannot be read "
                f"({_reason(error)}); remove the folder and preprocess again"
            ) from error

    def _is_replaced(self) -> bool:
        """Return whether the folder has another manifest by now."""
        with suppress(StageError):
            layout = self.layout
            return (
                layout.manifest.is_file() and _open_ours(layout).content_hash != self.content_hash
            )
        return False

    def _info(self, sample_id: str) -> dict[str, Any]:
        return _read(contained(self.layout.folder, f"{sample_id}.info.json"), _read_info)

    def _load(self, sample_id: str) -> Sample:
        info = self._info(sample_id)
        if self.layout.format is SampleFormat.nemo:
            latent_CFHW = self._tensor(info, f"{sample_id}.video_latent.pth", read_pth)
            text_TD = self._tensor(info, f"{sample_id}.t5_text_embeddings.pth", read_pth)
        else:
            name = f"{sample_id}.video_latent.safetensors"
            latent_CFHW = self._tensor(info, name, _reader("video_latent"))
            text_TD = self._text(info)
        if latent_CFHW.ndim != 4 or text_TD.ndim != 2:
            raise ValueError("its latent or its text has another number of dimensions")
        return Sample(
            id=sample_id,
            latent_CFHW=latent_CFHW,
            text_TD=text_TD,
            padding_1HW=_padding(info, *latent_CFHW.shape[-2:]),
            fps=_fps(info),
            caption=self.captions.get(sample_id, ""),
        )

    def _text(self, info: dict[str, Any]) -> torch.Tensor:
        name = info["text"]
        if name not in self._texts:
            self._texts[name] = self._tensor(info, name, _reader("t5_text_embeddings"))
        return self._texts[name]

    def _tensor(
        self, info: dict[str, Any], name: object, read: Callable[[Path], torch.Tensor]
    ) -> torch.Tensor:
        """Return a tensor from a file below the folder whose hash, if known, is right."""
        path = contained(self.layout.folder, name)
        digest = info.get("files", {}).get(name)
        tensor = _read(path, read)
        is_whole = digest is None or digest == files.sha256_of(path)
        if not is_whole or not tensor.is_floating_point():
            raise ValueError(f"{path.name} is damaged")
        return tensor


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    """Return what `read` makes of a file. Raises: ValueError or OSError naming it."""
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged") from error


def _read_info(path: Path) -> dict[str, Any]:
    info = read_sealed(path)
    if "files" in info and SEAL not in info:
        raise ValueError("its seal is gone")
    return info


def _fps(info: dict[str, Any]) -> float:
    fps = float(info.get("fps", 24.0))
    if not 0 < fps < MAX_FPS:
        raise ValueError(f"fps is {fps}")
    return fps


def _reader(name: str) -> Callable[[Path], torch.Tensor]:
    """Return what reads one tensor of a safetensors file."""

    def read(path: Path) -> torch.Tensor:
        with open_tensors(path) as file:
            return file.get_tensor(name)

    return read


def _reason(error: Exception) -> str:
    """Return an error's text, or of one that says nothing by itself what it stands for."""
    is_told = isinstance(error, (OSError, ValueError))
    return str(error) if is_told else f"info.json is misshapen: {shown(error)}"


def _padding(info: dict[str, Any], height: int, width: int) -> torch.Tensor:
    """Return the padding mask at latent resolution; a cell that is partly content is content."""
    box = info.get("content")
    if box is None:
        return torch.zeros(1, height, width)
    factor = info["height"] // height
    mask_1HW = torch.ones(1, height, width)
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
            return _open_ours(layout)
    layout = Layout(folder, SampleFormat.nemo)
    is_unfinished = layout.beside("plan.json").is_file()
    ids = [] if is_unfinished else foreign_ids(folder)
    if not ids:
        raise StageError(
            f"data.path={path} holds no samples (no manifest.json); run: cosmos-hydra "
            f"stage=preprocess data.path={path} with the same data= and data.source="
        )
    return SampleStore(layout, _foreign_manifest(folder, ids))


def _open_ours(layout: Layout) -> SampleStore:
    try:
        manifest = read_json(contained(layout.manifest.parent, layout.manifest.name))
        version = manifest.get("format_version")
        if version not in READ_VERSIONS:
            raise StageError(
                f"{layout.manifest} has format_version {shown(version)}, this program reads "
                f"{' and '.join(map(str, READ_VERSIONS))}; preprocess again"
            )
        _check(manifest)
        return SampleStore(layout, manifest)
    except (OSError, *MISSHAPEN) as error:
        raise StageError(
            f"{layout.manifest} is damaged ({shown(error)}); preprocess again"
        ) from error


def _check(manifest: dict[str, Any]) -> None:
    """Raise ValueError unless the parts that are used later have their types."""
    types = {"content_hash": str, "samples": list, "tokenizer": dict, "text_encoder": dict}
    for name, wanted in types.items():
        if not isinstance(manifest.get(name), wanted):
            raise ValueError(f"{name} is missing or misshapen")
    plain_name(manifest.get("fitted_tokenizer") or "none")
    for entry in manifest["samples"]:
        if not isinstance(entry.get("caption", ""), str):
            raise ValueError("a caption is no text")
        if not {"video", "start_frame"} <= entry.keys():
            raise ValueError("a sample lacks its video")
    if not any(entry["split"] == TRAIN for entry in manifest["samples"]):
        raise ValueError("no sample to train on")


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
