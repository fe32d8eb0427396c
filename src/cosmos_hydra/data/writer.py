"""Write samples as store.py reads them, crash-safely; info.json last."""

import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cosmos_hydra import files
from cosmos_hydra.config import SampleFormat
from cosmos_hydra.data.keys import text_key
from cosmos_hydra.data.layout import Layout
from cosmos_hydra.data.motion import write_motion
from cosmos_hydra.models.text import TextEmbedding
from cosmos_hydra.reading import contained, read_sealed, read_tensors, sealed

# action and state, float32 [F, D] each
Motion = dict[str, torch.Tensor]


class Texts:
    """Embeddings of captions, one file a caption and encoder."""

    def __init__(self, layout: Layout, encoder: dict[str, Any]) -> None:
        self.folder, self.encoder = layout.texts, encoder

    def path(self, caption: str) -> Path:
        """Return where a caption's embedding lies once it is written."""
        name = f"{self.folder.name}/{text_key(caption, self.encoder)}.safetensors"
        return contained(self.folder.parent, name)

    def write(self, caption: str, text: TextEmbedding) -> None:
        tensors = {
            "t5_text_embeddings": text.embedding_TD.contiguous(),
            "t5_text_mask": text.mask_T.contiguous(),
        }
        files.write_with(self.path(caption), lambda temporary: save_file(tensors, temporary))


class SampleWriter:
    """Write samples whose captions' embeddings are in files already; threads may share one."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.is_nemo = layout.format is SampleFormat.nemo

    def write(
        self,
        sample_id: str,
        info: dict[str, Any],
        latent_CFHW: torch.Tensor,
        text: Path,
        motion: Motion | None = None,
    ) -> None:
        """Write one sample; latent as bfloat16. Motion is left out of data.format=nemo."""
        latent_CFHW = latent_CFHW.to("cpu", torch.bfloat16).contiguous()
        path = self._latent(sample_id)
        if self.is_nemo:
            files.write_with(path, _saver(latent_CFHW))
        else:
            files.write_with(path, lambda temporary: save_file(_named(latent_CFHW), temporary))
        self._complete(sample_id, info, text, motion)

    def adopt(
        self,
        other_id: str,
        sample_id: str,
        info: dict[str, Any],
        text: Path,
        motion: Motion | None = None,
    ) -> bool:
        """Write a sample with the latent of another; return whether that one was intact.

        `info` needs no `content`, which is the other's too.
        """
        other = self._latent(other_id)
        try:
            found = read_sealed(self.layout.info(other_id))
            if found["files"][other.name] != files.sha256_of(other):
                return False
            info = {**info, "content": found["content"]}
        except (OSError, ValueError, LookupError, TypeError):
            return False
        files.write_with(self._latent(sample_id), lambda temporary: _link(other, temporary))
        self._complete(sample_id, info, text, motion)
        return True

    def _latent(self, sample_id: str) -> Path:
        suffix = "pth" if self.is_nemo else "safetensors"
        return self.layout.folder / f"{sample_id}.video_latent.{suffix}"

    def _complete(
        self, sample_id: str, info: dict[str, Any], text: Path, motion: Motion | None
    ) -> None:
        """Write what a sample has beside its latent, info.json last."""
        folder = self.layout.folder
        names = [self._latent(sample_id).name]
        if self.is_nemo:
            embedding_TD, num_tokens = _embedding(text)
            tensors = {
                "t5_text_embeddings": embedding_TD,
                # the reader's own files hold ones, whatever the caption's length
                "t5_text_mask": torch.ones(num_tokens, dtype=torch.bfloat16),
            }
            for name, tensor in tensors.items():
                names.append(f"{sample_id}.{name}.pth")
                files.write_with(folder / names[-1], _saver(tensor))
        else:
            names.append(text.relative_to(folder).as_posix())
            info = {**info, "text": names[-1]}
            if motion:
                names.append(write_motion(folder, sample_id, motion))
        hashes = {name: files.sha256_of(folder / name) for name in names}
        files.write_bytes(self.layout.info(sample_id), sealed({**info, "files": hashes}))


@lru_cache(maxsize=64)
def _embedding(text: Path) -> tuple[torch.Tensor, int]:
    embedding_TD = read_tensors(text)["t5_text_embeddings"]
    return embedding_TD, len(embedding_TD)


def _named(latent_CFHW: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"video_latent": latent_CFHW}


def _link(existing: Path, path: Path) -> None:
    try:
        os.link(existing, path)
    except OSError:  # some file systems have no hard links
        shutil.copyfile(existing, path)


def _saver(tensor: torch.Tensor) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        # given a path, torch would write its name, our temporary one, into the file
        with path.open("wb") as file:
            torch.save(tensor, file)

    return save
