"""Attention of a block: heads split over tp, tokens over cp, kernel by name.

Under cp each rank holds part of a clip's tokens. Ulysses (arXiv 2309.14509) exchanges tokens for
heads around the kernel; where the heads do not divide, keys and values go round (ring.py).
Cross-attention needs neither: every rank holds the whole text.
Legend: B batch, N heads, L tokens, l tokens of this rank, K head dim, T text tokens, D width.
"""

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_to_all_single_autograd

from cosmos_hydra.engines.torch.kernels import Kernel


class Ulysses:
    """Exchange tokens for heads, attend over the whole clip, exchange back."""

    def __init__(self, kernel: Kernel, group: ProcessGroup) -> None:
        self.kernel, self.size, self.group = kernel, group.size(), group

    def __call__(
        self, q_BNlK: torch.Tensor, k_BNlK: torch.Tensor, v_BNlK: torch.Tensor
    ) -> torch.Tensor:
        # one exchange for all three: [3 * B, N, l, K]
        qkv_BNLK = self._tokens_for_heads(torch.cat([q_BNlK, k_BNlK, v_BNlK]))
        out_BNLK = self.kernel(*qkv_BNLK.chunk(3))
        return self._heads_for_tokens(out_BNLK)

    def _tokens_for_heads(self, x_BNlK: torch.Tensor) -> torch.Tensor:
        B, N, own_tokens, K = x_BNlK.shape
        x = x_BNlK.transpose(0, 1).reshape(self.size, N // self.size, B, own_tokens, K)
        x = self._exchange(x)  # first axis: whose tokens
        return x.permute(2, 1, 0, 3, 4).reshape(B, N // self.size, self.size * own_tokens, K)

    def _heads_for_tokens(self, x_BNLK: torch.Tensor) -> torch.Tensor:
        B, n, L, K = x_BNLK.shape
        x = x_BNLK.reshape(B, n, self.size, L // self.size, K).permute(2, 1, 0, 3, 4)
        x = self._exchange(x)  # first axis: whose heads
        return x.flatten(0, 1).transpose(0, 1)

    def _exchange(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.contiguous().flatten()
        return all_to_all_single_autograd(flat, None, None, self.group).view(x.shape)


class BlockAttention:
    """diffusers' attention processor of the Cosmos blocks, with our kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the attention's output, [B, l, D]; the names are diffusers'."""
        x_BlD = hidden_states
        source_BTD = x_BlD if encoder_hidden_states is None else encoder_hidden_states
        # under tp the projections give the own heads only
        head_dim = attn.inner_dim // attn.heads

        def heads(linear: Any, source_BLD: torch.Tensor) -> torch.Tensor:
            return linear(source_BLD).unflatten(2, (-1, head_dim)).transpose(1, 2)

        def rotated(x_BNLK: torch.Tensor) -> torch.Tensor:
            if image_rotary_emb is None:
                return x_BNLK
            return apply_rotary_emb(x_BNLK, image_rotary_emb, use_real_unbind_dim=-2)

        # one after the other: less is alive at once
        q_BNlK = rotated(attn.norm_q(heads(attn.to_q, x_BlD)))
        k_BNTK = rotated(attn.norm_k(heads(attn.to_k, source_BTD)))
        v_BNTK = heads(attn.to_v, source_BTD)
        out_BNlK = self.kernel(q_BNlK, k_BNTK, v_BNTK)
        out_BlD = out_BNlK.transpose(1, 2).flatten(2, 3).type_as(q_BNlK)
        return attn.to_out[1](attn.to_out[0](out_BlD))


def set_attention(transformer: Any, kernel: Kernel, over_all: Kernel | None = None) -> None:
    """Give every block a kernel, and self-attention another one where tokens are shared."""
    for block in transformer.transformer_blocks:
        block.attn1.set_processor(BlockAttention(over_all or kernel))
        block.attn2.set_processor(BlockAttention(kernel))
