"""Where the files of a folder of samples lie.

`safetensors` (ours): `{i}.info.json` and `{i}.video_latent.safetensors`; text embeddings once per
caption below `text/`, named in info.json. `nemo`: exactly the four files that the NeMo data module
reads, `{i}.info.json {i}.video_latent.pth {i}.t5_text_embeddings.pth {i}.t5_text_mask.pth`, and all
else beside the folder, since that reader takes every file for a sample.
info.json is written last: a sample without it does not count.
"""

from dataclasses import dataclass
from pathlib import Path

from cosmos_hydra.config import SampleFormat


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
    def texts(self) -> Path:
        """Return the folder of the captions' embeddings."""
        return self.beside("text")

    @property
    def hashes(self) -> Path:
        """Return the file that remembers the hashes of the videos."""
        return self.beside("hashes.json")

    @property
    def ends(self) -> set[str]:
        """Return how the names of a sample's files end."""
        if self.format is SampleFormat.nemo:
            tensors = ("video_latent", "t5_text_embeddings", "t5_text_mask")
            return {"info.json", *(f"{name}.pth" for name in tensors)}
        return {"info.json", "video_latent.safetensors"}

    @property
    def lock(self) -> Path:
        """Return the file that a process holds while it writes here."""
        return self.beside("lock" if self.format is SampleFormat.nemo else ".lock")

    @property
    def readers(self) -> Path:
        """Return the file that runs hold while they read here."""
        return self.beside("readers" if self.format is SampleFormat.nemo else ".readers")

    def info(self, sample_id: str) -> Path:
        return self.folder / f"{sample_id}.info.json"
