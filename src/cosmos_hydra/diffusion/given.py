"""Video2World: the first latent frames of a clip are given, and the network continues them.

Given frames stand in the network's input with almost no noise, whatever the noise of the others,
and a channel beside the latent marks them. Their estimate is what they are, so that they count in
no loss and sampling leaves them alone.
Source: cosmos-predict1 `diffusion/model/model_v2w.py`, as in diffusers'
`pipeline_cosmos_video2world.py`. Legend: B batch, C channels, F latent frames, H W latent
height/width, L frames that are given, or more.
"""

from dataclasses import dataclass, replace

import torch

from cosmos_hydra.diffusion.edm import Network, denoise


@dataclass(frozen=True)
class Given:
    """The given frames of a batch; what lies behind them in the latents is not looked at."""

    # scaled to sigma_data
    clean_BCFHW: torch.Tensor
    # with noise of their own, at the unit variance of the network's input
    input_BCFHW: torch.Tensor
    # 1 = this frame is given
    mask_B1F11: torch.Tensor
    # false = the mask alone stays, and these frames are denoised with the rest
    is_shown: bool = True

    def hidden(self) -> "Given":
        """Return the same without its frames in the network's input."""
        return replace(self, is_shown=False)

    def to(self, device: torch.device) -> "Given":
        """Return the same on a device."""
        return Given(
            self.clean_BCFHW.to(device),
            self.input_BCFHW.to(device),
            self.mask_B1F11.to(device),
            self.is_shown,
        )

    def denoise(
        self, network: Network, noisy_BCFHW: torch.Tensor, sigma_B: torch.Tensor, sigma_data: float
    ) -> torch.Tensor:
        """Return the estimate of the clean latent, as edm.denoise does.

        The network gets one more channel than the latent has: the mask.
        """
        is_given = self.mask_B1F11.bool() & self.is_shown

        def marked(latent_BCFHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
            B, _, F, H, W = latent_BCFHW.shape
            input_BCFHW = torch.where(is_given, self.input_BCFHW.float(), latent_BCFHW)
            mask_B1FHW = self.mask_B1F11.float().expand(B, 1, F, H, W)
            return network(torch.cat([input_BCFHW, mask_B1FHW], dim=1), c_noise_B)

        estimate_BCFHW = denoise(marked, noisy_BCFHW, sigma_B, sigma_data)
        return torch.where(is_given, self.clean_BCFHW.to(noisy_BCFHW.dtype), estimate_BCFHW)


def mark(count_B: torch.Tensor, latent_BCFHW: torch.Tensor) -> torch.Tensor:
    """Return the mask of the first `count_B` frames, [B, 1, F, 1, 1] in the latent's dtype."""
    frames = torch.arange(latent_BCFHW.shape[2], device=latent_BCFHW.device)
    mask_BF = frames[None] < count_B.to(frames.device)[:, None]
    return mask_BF.to(latent_BCFHW.dtype)[:, None, :, None, None]


def give(
    clean_BCFHW: torch.Tensor,
    noise_BCFHW: torch.Tensor,
    count_B: torch.Tensor,
    sigma_B: torch.Tensor,
    sigma_data: float,
) -> Given:
    """Return the first `count_B` frames as given, with noise of standard deviation `sigma_B`.

    The latent is scaled to sigma_data. Its noise in these frames may be that of the noisy latent,
    which they take the place of.
    """
    sigma = sigma_B.to(clean_BCFHW)[:, None, None, None, None]
    input_BCFHW = (clean_BCFHW + sigma * noise_BCFHW) * (sigma**2 + sigma_data**2).rsqrt()
    return Given(clean_BCFHW, input_BCFHW, mark(count_B, clean_BCFHW))
