"""Ranks that have Megatron and, where it is installed, NeMo imported before they are forked."""

import importlib.util

import pytest
import ranks

pytest.importorskip("megatron.core", reason="megatron-core is not installed")
HAS_NEMO = importlib.util.find_spec("nemo") is not None
CASES = ("nemo_cases", "nemo_training_cases") if HAS_NEMO else ("nemo_cases",)
ranks.PRELOADED = (*ranks.PRELOADED, *CASES)
run = ranks.run
