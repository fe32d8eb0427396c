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
        "set_device": lambda number: None,
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


def prepare_for_loading() -> None:
    """Give PyTorch's Adam the state that Transformer Engine's, for which it stands, begins with.

    Megatron asks for it before it loads a checkpoint; and NeMo afterwards for the device's number.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from nemo.lightning.io import pl

    pl._fix_tensors_device = lambda loaded: loaded

    state_dict = DistributedOptimizer.state_dict

    def with_state(self: Any) -> Any:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                state = self.optimizer.state[parameter]
                state.setdefault("step", torch.tensor(0.0))
                for moment in ("exp_avg", "exp_avg_sq"):
                    state.setdefault(moment, torch.zeros_like(parameter))
        return state_dict(self)

    set_states = DistributedOptimizer._set_main_param_and_optimizer_states

    def with_step(self: Any, parameter: Any, tensors: dict[str, Any]) -> None:
        group, place = self.model_param_group_index_map[parameter]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][place]]
        state["step"] = state["step"].clone()  # one tensor for all would count for all
        set_states(self, parameter, {**tensors, "step": state["step"]})

    DistributedOptimizer.state_dict = with_state
    DistributedOptimizer._set_main_param_and_optimizer_states = with_step
