"""The errors users see: one line each, with an exit code.

Message shape: `<config key>=<value> <what is wrong>; <what would be right, or what to run>`.
"""


class CosmosError(Exception):
    """An error the user can act on; `main` prints it without a traceback."""

    exit_code = 1


class ConfigError(CosmosError):
    """Something to fix in the config; found before any model is built. One problem a line."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class StageError(CosmosError):
    """The data or the environment does not allow the stage to go on."""


class Preempted(CosmosError):
    """A signal asked the run to stop; its checkpoint is on disk."""

    exit_code = 75
