"""The decord module, imported without the NVIDIA libraries it would load.

decord2 3.4 opens every NVIDIA library that pip installed, with global symbols. One of them,
libnvblas, then replaces the BLAS of the process, and matrix products on the CPU come out wrong
(seen on an H200 with torch 2.11+cu130: zeros, then a crash). Frames are decoded on the CPU here,
so none of these libraries is needed.
"""

import importlib
import sys
from typing import Any

import torch  # noqa: F401 (before decord, so that its own BLAS is bound)


def _import_decord() -> Any:
    loaded: dict[str, Any] = sys.modules
    before = {"nvidia": loaded["nvidia"]} if "nvidia" in loaded else {}
    loaded["nvidia"] = None  # decord's search then finds nothing
    try:
        return importlib.import_module("decord")
    finally:
        del loaded["nvidia"]
        loaded.update(before)


decord = _import_decord()
# a damaged file is reported once, by us, and not with hundreds of lines from FFmpeg
decord.logging.set_level(decord.logging.QUIET)
