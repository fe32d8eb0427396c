"""Ring attention (arXiv 2310.01889): keys and values go round the ranks, nobody holds all of them.

Each rank attends from its own tokens to one part after the other. Parts are put together by their
log-sum-exp; the backward pass takes the whole one, with which each part's gradient is exact.
Legend: B batch, N heads, l tokens of this rank, K head dim; kv = keys and values, stacked.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

aten = torch.ops.aten


class Ring:
    """Attend from the own tokens to those of all ranks of a mesh with one axis."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group = mesh.get_group()

    def __call__(
        self, q_BNlK: torch.Tensor, k_BNlK: torch.Tensor, v_BNlK: torch.Tensor
    ) -> torch.Tensor:
        return _Attention.apply(q_BNlK, k_BNlK, v_BNlK, self.group)


class _Part(NamedTuple):
    out_BNlK: torch.Tensor
    sums_BNl: torch.Tensor  # log-sum-exp of the scores, float32
    others: tuple[Any, ...]  # what the kernel's backward pass asks for


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BNlK: torch.Tensor,
        k_BNlK: torch.Tensor,
        v_BNlK: torch.Tensor,
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        kv = own_kv = torch.stack([k_BNlK, v_BNlK])
        others = []
        out = torch.zeros_like(q_BNlK, dtype=torch.float32)
        sums = out.new_full(out.shape[:-1], -torch.inf)
        for turn in range(group.size()):
            coming = _Rotation(kv, group) if turn + 1 < group.size() else None
            part = _attend(q_BNlK, *kv)
            others.append(part.others)
            total = torch.logaddexp(sums, part.sums_BNl)
            out *= (sums - total).exp()[..., None]
            out += part.out_BNlK * (part.sums_BNl - total).exp()[..., None]
            sums = total
            kv = coming.wait() if coming else kv
        out_BNlK = out.type_as(q_BNlK)
        ctx.save_for_backward(q_BNlK, own_kv, out_BNlK, sums)
        ctx.group, ctx.others = group, others
        return out_BNlK

    @staticmethod
    def backward(ctx: Any, gradient_BNlK: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_BNlK, kv, out_BNlK, sums_BNl = ctx.saved_tensors
        gradient_q = torch.zeros_like(q_BNlK, dtype=torch.float32)
        # goes round with the keys and values it is of, and arrives at home
        gradient_kv = torch.zeros_like(kv, dtype=torch.float32)
        for others in ctx.others:
            coming = _Rotation(kv, ctx.group)
            part = _Part(out_BNlK, sums_BNl, others)
            of_q, of_k, of_v = _gradients(gradient_BNlK.contiguous(), q_BNlK, kv, part)
            gradient_q += of_q
            gradient_kv += torch.stack([of_k, of_v])
            kv, gradient_kv = coming.wait(), _Rotation(gradient_kv, ctx.group).wait()
        gradient_k, gradient_v = gradient_kv.type_as(q_BNlK)
        return gradient_q.type_as(q_BNlK), gradient_k, gradient_v, None


class _Rotation:
    """A tensor on its way to the next rank, while that of the rank before arrives."""

    def __init__(self, tensor: torch.Tensor, group: dist.ProcessGroup) -> None:
        rank, size = group.rank(), group.size()
        following, previous = (
            dist.get_global_rank(group, (rank + step) % size) for step in (1, size - 1)
        )
        self.sent, self.arriving = tensor, torch.empty_like(tensor)
        self.works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, tensor, following, group),
                dist.P2POp(dist.irecv, self.arriving, previous, group),
            ]
        )

    def wait(self) -> torch.Tensor:
        """Return what has arrived."""
        for work in self.works:
            work.wait()
        return self.arriving


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> _Part:
    if q.device.type == "cpu":
        out, sums = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return _Part(out, sums, ())
    out, sums, *others, _ = aten._scaled_dot_product_flash_attention(q, k, v)
    return _Part(out, sums, tuple(others))


def _gradients(
    gradient: torch.Tensor, q: torch.Tensor, kv: torch.Tensor, part: _Part
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    given = (gradient, q, *kv, part.out_BNlK, part.sums_BNl)
    dropout, is_causal = 0.0, False
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, dropout, is_causal)
    *sizes, seed, offset = part.others
    return aten._scaled_dot_product_flash_attention_backward(
        *given, *sizes, dropout, is_causal, seed, offset
    )
