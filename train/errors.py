"""The errors that end a run, each with its own exit code of the command line."""

import os

from resnet_spec import UnknownNameError


class UserError(ValueError):
    """What was wrong, where, and what to do: exit code 2."""


class DivergedError(RuntimeError):
    """The loss is no longer finite: exit code 1."""


class DeviceError(RuntimeError):
    """The device gave up, most often for want of memory: exit code 1."""


class AbandonedError(RuntimeError):
    """A signal came during a test or a check, which the resumed run will make."""


class StoppedError(RuntimeError):
    """A signal asked the run to stop; it has saved what it had: exit code 75, "try again"."""


def exit_code(error: BaseException) -> int:
    """Of the command line that an error ends."""
    match error:
        case UserError() | UnknownNameError() | ModuleNotFoundError():
            return 2
        case StoppedError():
            return os.EX_TEMPFAIL
        case KeyboardInterrupt():
            return 130
    return 1
