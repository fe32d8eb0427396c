"""Count the bytes of live tensors while the real classes run, on real or fake tensors.

Fake tensors have shapes and no content, so that sizes far beyond this machine can be counted.
"""

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cosmos_hydra.config import Attention, Config, Precision
from cosmos_hydra.data.clips import latent_shape
from cosmos_hydra.diffusion.edm import denoise, weighted_error
from cosmos_hydra.engines.torch.attention import set_attention
from cosmos_hydra.engines.torch.kernels import kernel_of
from cosmos_hydra.engines.torch.precision import autocast_for
from cosmos_hydra.engines.torch.recompute import apply_recompute
from cosmos_hydra.models.fast_autoencoder import Way, speed_up
from cosmos_hydra.models.transformer import Denoiser, build_transformer

CPU = torch.device("cpu")


class LiveMemory(TorchDispatchMode):
    """Counts every tensor made while it is active; `peak` is the most alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakSet()

    def add(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage() in self.known:
                continue
            storage = tensor.untyped_storage()
            self.known.add(storage)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._drop, storage.nbytes())
        self.peak = max(self.peak, self.live)

    def _drop(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.add(tree_leaves(result))
        return result


@contextmanager
def counting_fakes() -> Iterator[LiveMemory]:
    """Make every tensor a fake one, and count them."""
    # the tokenizer brings a constant of its own
    with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory() as memory:
        yield memory


def build(config: Config, dtype: torch.dtype = torch.float32) -> Denoiser:
    """Return the network with weights of a dtype."""
    torch.set_default_dtype(dtype)
    try:
        transformer = build_transformer(config.model)
    finally:
        torch.set_default_dtype(torch.float32)
    set_attention(transformer, kernel_of(Attention.flash))
    apply_recompute(transformer, config.parallel, CPU)
    return Denoiser(transformer)


def run_network(config: Config, denoiser: Denoiser, precision: Precision, batch: int) -> Any:
    """Return the losses of a batch of the configured clip."""
    shape = latent_shape(config.data, config.model.latent_channels)
    autocast = autocast_for(precision, CPU)
    text_BTD = torch.zeros(batch, config.model.text_tokens, config.model.text_dim).bfloat16()
    padding_B1HW = torch.zeros(batch, 1, *shape[2:])
    clean_BCFHW, noise_BCFHW = torch.randn(batch, *shape), torch.randn(batch, *shape)
    sigma_B = torch.rand(batch)

    def network(latent_BCFHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
        with autocast():
            return denoiser(latent_BCFHW, c_noise_B, text_BTD, padding_B1HW, 24.0)

    noisy_BCFHW = clean_BCFHW + sigma_B[:, None, None, None, None] * noise_BCFHW
    estimate_BCFHW = denoise(network, noisy_BCFHW, sigma_B, 0.5)
    return weighted_error(estimate_BCFHW, clean_BCFHW, sigma_B, padding_B1HW, 0.5)


def count_forward_gb(config: Config, precision: Precision, dtype: torch.dtype) -> float:
    """Return the most alive beside weights of a dtype in a forward pass with guidance."""
    with counting_fakes() as memory, torch.no_grad():
        denoiser = build(config, dtype)
        weights = sum(dtype.itemsize * parameter.numel() for parameter in denoiser.parameters())
        memory.peak = memory.live = weights
        run_network(config, denoiser, precision, batch=2)
        return (memory.peak - weights) / 1e9


def count_decoding_gb(config: Config, dtype: torch.dtype, ways: Collection[Way]) -> float:
    """Return the most alive beside its weights while the released tokenizer decodes a clip."""
    from diffusers import AutoencoderKLCosmos

    with counting_fakes() as memory, torch.no_grad():
        torch.set_default_dtype(dtype)
        try:
            autoencoder = AutoencoderKLCosmos()
        finally:
            torch.set_default_dtype(torch.float32)
        speed_up(autoencoder, ways)
        memory.peak = memory.live = 0
        shape = latent_shape(config.data, config.model.latent_channels)
        autoencoder.decode(torch.zeros(1, *shape, dtype=dtype)).sample.float()
        return memory.peak / 1e9


def count_training_gb(config: Config, precision: Precision) -> float:
    """Return the most alive beside weights in the micro-batches of one training step."""
    with counting_fakes() as memory:
        denoiser = build(config)
        weights = sum(4 * parameter.numel() for parameter in denoiser.parameters())
        memory.add(denoiser.parameters())
        micro = config.trainer.micro_batch_size
        for _ in range(config.trainer.global_batch_size // micro):
            run_network(config, denoiser, precision, micro).sum().backward()
        return (memory.peak - weights) / 1e9
