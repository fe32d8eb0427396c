"""Hydra's own tests of launchers, on real ranks."""

import pytest
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

NAME = "cosmos_torchrun"
# every job starts an agent and its ranks, which takes seconds
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [(NAME, [f"hydra.launcher.nproc_per_node={n}"]) for n in (1, 2)],
)
class TestTorchrun(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [(NAME, ["hydra.launcher.nproc_per_node=1", "hydra.sweeper.max_batch_size=2"])],
)
class TestTorchrunInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({}, ["-m", f"hydra/launcher={NAME}", "hydra.launcher.nproc_per_node=1"])],
)
class TestTorchrunIntegration(IntegrationTestSuite):
    pass
