"""Have the CPU stand for the CUDA device that Megatron's training names everywhere.

What runs is NeMo's and Megatron's own code: strategy, gradient buffers, distributed optimizer,
checkpoints. Streams and pinned memory are left out, and tensors say that they lie on CUDA.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _OnCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.")
        return func(*("cpu" if _is_cuda(arg) else arg for arg in args), **kwargs)


def _is_cuda(value: Any) -> bool:
    return isinstance(value, (str, torch.device)) and str(value).startswith("cuda")


class _Stream:
    def __init__(self, *unused: Any, **unused_too: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    def synchronize(self) -> None: ...


@contextmanager
def cpu_for_cuda() -> Iterator[None]:
    """Stand in until the block ends; for processes of their own, what is patched stays."""
    stand_ins: dict[str, Any] = {
        "current_device": lambda: "cpu",
        "synchronize": lambda *unused: None,
        "stream": lambda stream: nullcontext(),
        "Stream": _Stream,
        "current_stream": _Stream,
        "Event": _Stream,
    }
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)
    with _OnCpu():
        yield
