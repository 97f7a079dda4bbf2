"""The ways a run ends early on purpose, and their exit codes."""


class UserError(Exception):
    """The user's input is wrong: one sentence saying what, where, and what to write instead (exit
    code 2).
    """

    exit_code = 2


class Leak(Exception):
    """Images a model was trained on stand in a split that is to be scored (exit code 4)."""

    exit_code = 4


class ConfigError(UserError):
    """A key or value of the configuration is wrong (exit code 2)."""


class Diverged(Exception):
    """The loss stopped being finite (exit code 3)."""

    exit_code = 3


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; a checkpoint was written first (exit code 130)."""

    exit_code = 130


class MissingSplit(UserError):
    """The data has no such split (exit code 2 where it was asked for by name)."""
