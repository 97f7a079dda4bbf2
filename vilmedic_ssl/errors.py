"""The ways a run ends early on purpose, and their exit codes."""

import re

OURS = re.compile(r"^vilmedic_ssl\.errors\.\w+: ", re.MULTILINE)


class UserError(Exception):
    """The user's input is wrong: one sentence saying what, where, and what to write instead (exit
    code 2).
    """

    exit_code = 2


class Leak(Exception):
    """Splits share what they must not, or a scored image was trained on (exit code 4)."""

    exit_code = 4


class ConfigError(UserError):
    """A key or value of the configuration is wrong (exit code 2)."""


class Diverged(Exception):
    """The loss stopped being finite (exit code 3)."""

    exit_code = 3


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; a checkpoint was written first (exit code 130)."""

    exit_code = 130


class Unobtainable(UserError):
    """Weights or an optional package that cannot be had here (exit code 2)."""


class MissingSplit(UserError):
    """The data has no such split (exit code 2 where it was asked for by name)."""


def own_words(error: UserError) -> str:
    """The sentence of an error that came out of a worker process wrapped in a traceback."""
    return OURS.split(str(error))[-1].strip()
