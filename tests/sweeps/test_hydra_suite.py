"""Hydra's own tests of launchers, on ours."""

import logging
from collections.abc import Iterator

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.version import _UNSPECIFIED_, VersionBase


@pytest.fixture(autouse=True)
def _logging_stays_as_it_is() -> Iterator[None]:
    """Undo what Hydra's default logging does to the root logger."""
    root = logging.getLogger()
    before = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = before


@pytest.fixture(autouse=True)
def _no_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have configs as Hydra's tests have them; another test of this process may have run ours."""
    # theirs expect the working directory of Hydra 1.1, the default
    monkeypatch.setattr(VersionBase.instance(), "version_base", _UNSPECIFIED_)
    for owner, name in (
        (ConfigRepository, "initialize_sources"),
        (ConfigLoaderImpl, "load_configuration"),
        (ConfigLoaderImpl, "load_sweep_config"),
    ):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, getattr(method, "__wrapped__", method))


def test_hydra_finds_the_launcher() -> None:
    names = [launcher.__name__ for launcher in Plugins.instance().discover(Launcher)]
    assert "LocalLauncher" in names


@pytest.mark.parametrize(("launcher_name", "overrides"), [("cosmos_local", [])])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("cosmos_local", ["hydra.sweeper.max_batch_size=2"])]
)
class TestBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({"defaults": [{"override hydra/launcher": "cosmos_local"}]}, ["-m"])],
)
class TestIntegration(IntegrationTestSuite):
    pass
