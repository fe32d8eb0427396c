"""Write samples as store.py reads them, crash-safely; info.json last."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors.torch import save_file

from cosmos_hydra import files
from cosmos_hydra.config import SampleFormat
from cosmos_hydra.data.motion import write_motion
from cosmos_hydra.data.store import Layout
from cosmos_hydra.models.text import TextEmbedding
from cosmos_hydra.reading import contained, sealed


class SampleWriter:
    """Write samples; text embeddings are written once per caption where possible.

    Threads may share a writer.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._text_lock = Lock()  # two would write the same temporary file

    def write(
        self,
        sample_id: str,
        info: dict[str, Any],
        latent_CFHW: torch.Tensor,
        text: TextEmbedding,
        motion: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Write one sample; latent as bfloat16. Motion is left out of data.format=nemo."""
        folder = self.layout.folder
        latent_CFHW = latent_CFHW.to("cpu", torch.bfloat16).contiguous()
        if self.layout.format is SampleFormat.nemo:
            tensors = {
                "video_latent": latent_CFHW,
                "t5_text_embeddings": text.embedding_TD,
                # the reader's own files hold ones, whatever the caption's length
                "t5_text_mask": torch.ones(len(text.mask_T), dtype=torch.bfloat16),
            }
            names = [f"{sample_id}.{name}.pth" for name in tensors]
            for name, tensor in zip(names, tensors.values(), strict=True):
                files.write_with(folder / name, _saver(tensor))
        else:
            info = {**info, "text": self._write_text(text)}
            names = [f"{sample_id}.video_latent.safetensors", info["text"]]
            latent = {"video_latent": latent_CFHW}
            files.write_with(folder / names[0], lambda path: save_file(latent, path))
            if motion:
                names.append(write_motion(folder, sample_id, motion))
        hashes = {name: files.sha256_of(folder / name) for name in names}
        files.write_bytes(self.layout.info(sample_id), sealed({**info, "files": hashes}))

    def _write_text(self, text: TextEmbedding) -> str:
        content = text.embedding_TD.view(torch.int16).numpy().tobytes()
        name = f"text/{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
        path = contained(self.layout.folder, name)
        with self._text_lock:
            if not path.is_file():
                tensors = {
                    "t5_text_embeddings": text.embedding_TD.contiguous(),
                    "t5_text_mask": text.mask_T.contiguous(),
                }
                files.write_with(path, lambda temporary: save_file(tensors, temporary))
        return name


def _saver(tensor: torch.Tensor) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        # given a path, torch would write its name, our temporary one, into the file
        with path.open("wb") as file:
            torch.save(tensor, file)

    return save
