"""The errors that end a run, each with its own exit code of the command line."""

import contextlib
import os
from collections.abc import Iterator

from resnet_spec import UnknownNameError


class UserError(ValueError):
    """What was wrong, where, and what to do: exit code 2."""


class DivergedError(RuntimeError):
    """The loss is NaN or infinite: exit code 1."""


class DeviceError(RuntimeError):
    """The device failed, most often out of memory: exit code 1."""


class AbandonedError(RuntimeError):
    """A signal came during a test or a check, which the resumed run repeats."""


class StoppedError(RuntimeError):
    """A signal stopped the run, which is saved: exit code 75, "try again"."""


def exit_code(error: BaseException) -> int:
    """The exit code of the command line for an error."""
    match error:
        case UserError() | UnknownNameError() | ModuleNotFoundError():
            return 2
        case StoppedError():
            return os.EX_TEMPFAIL
        case KeyboardInterrupt():
            return 130
    return 1


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """Turns JAX's error of a device into a DeviceError of one line."""
    import jax  # help need not wait for it

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        way_out = ""
        if "RESOURCE_EXHAUSTED" in str(error):
            way_out = "; --accumulate-steps, --remat or a smaller --global-batch-size need less"
        reason = str(error).strip().partition("\n")[0]
        raise DeviceError(f"the device gave up: {reason}{way_out}") from error
