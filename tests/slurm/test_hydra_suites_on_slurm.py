"""Hydra's own tests of launchers, each job a job of Slurm."""

import pytest
from cluster import cluster as cluster
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

NAME = "cosmos_slurm"
FIELDS = [
    *("hydra.launcher.nodes=1", "hydra.launcher.gpus_per_node=0"),
    *("hydra.launcher.nproc_per_node=1", "hydra.launcher.poll_s=1"),
]
# every job waits for Slurm and starts an agent and a rank, which takes seconds
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.mark.parametrize(("launcher_name", "overrides"), [(NAME, FIELDS)])
class TestSlurm(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [(NAME, [*FIELDS, "hydra.sweeper.max_batch_size=2"])]
)
class TestSlurmInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", f"hydra/launcher={NAME}", *FIELDS])]
)
class TestSlurmIntegration(IntegrationTestSuite):
    pass
