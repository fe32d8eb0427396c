"""Videos of fixed seeds and captions while training, so that progress can be seen."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

from cosmos_hydra.config import Config
from cosmos_hydra.data.clips import TRAIN
from cosmos_hydra.data.store import Sample, SampleStore
from cosmos_hydra.data.video import to_pixels, write_mp4
from cosmos_hydra.diffusion.generation import Request, generate_latent
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.precision import Autocast
from cosmos_hydra.models.tokenizer import load_tokenizer
from cosmos_hydra.models.transformer import Denoiser
from cosmos_hydra.tracking.pictures import contact_sheet, save_picture

MAX_PREVIEWS = 2
SEED = 1


def picture_of(run: Path, step: int) -> Path:
    """Return where the picture of a step's previews lies; it is written after the videos."""
    return run / "previews" / f"step_{step:06d}.png"


def remove_previews_after(run: Path, step: int) -> None:
    """Remove the previews of an earlier try that went further than the run stands now."""
    for path in (run / "previews").glob("step_*"):
        number = re.match(r"step_(\d+)", path.name)
        if number and int(number[1]) > step:
            path.unlink()


class Previews:
    """Sample the captions of a few training clips; the tokenizer is loaded only to decode."""

    def __init__(self, config: Config, store: SampleStore, run: Path, fitted: Path) -> None:
        self.config, self.run, self.fitted = config, run, fitted
        by_caption: dict[str, Sample] = {}
        for sample_id in store.splits[TRAIN]:
            caption = store.captions[sample_id]
            if caption not in by_caption:
                by_caption[caption] = store.load(sample_id)
            if len(by_caption) == MAX_PREVIEWS:
                break
        self.samples = list(by_caption.values())

    def show_data(self, device: torch.device) -> None:
        """Write previews/data.png: the clips themselves, decoded from their latents."""
        path = self.run / "previews" / "data.png"
        if not path.is_file():
            self._write(path, [sample.latent_CFHW.float() for sample in self.samples], device)

    def show(
        self,
        denoiser: Denoiser,
        step: int,
        ranks: Ranks,
        autocast: Autocast,
        check_stop: Callable[[], None] = lambda: None,
    ) -> Path:
        """Write previews/step_N.png and an mp4 of each clip; return the picture's path.

        Every rank samples, rank 0 writes. `check_stop`, called before every sampling step, may
        raise to leave it early.
        """
        generate, objective = self.config.generate, self.config.model.objective
        latents = []
        for sample in self.samples:
            C, F, H, W = sample.latent_CFHW.shape
            request = Request(
                text_TD=sample.text_TD,
                negative_TD=None,
                shape_CFHW=(C, F, H, W),
                fps=sample.fps,
                seed=SEED,
                steps=self.config.trainer.preview_steps,
                guidance=generate.guidance,
                sampler=generate.sampler,
                given_CLHW=sample.latent_CFHW[:, :1] if objective.given_frames else None,
                given_sigma=objective.given_sigma,
            )
            latents.append(
                generate_latent(
                    denoiser, request, objective.sigma_data, ranks.device, autocast, check_stop
                )
            )
        path = picture_of(self.run, step)
        if ranks.is_first:
            self._write(path, latents, ranks.device)
        return path

    def _write(self, path: Path, latents: list[torch.Tensor], device: torch.device) -> None:
        tokenizer = load_tokenizer(self.config.model, self.fitted, device)
        rows = []
        for number, (sample, latent_CFHW) in enumerate(zip(self.samples, latents, strict=True)):
            frames_FHWC = to_pixels(tokenizer.decode(latent_CFHW[None])[0])
            rows.append((sample.caption, frames_FHWC))
            write_mp4(path.with_name(f"{path.stem}_{number}.mp4"), frames_FHWC, sample.fps)
        save_picture(contact_sheet(rows), path)
