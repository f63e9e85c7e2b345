"""The errors that end a run, each with its own exit code of the command line."""


class UserError(ValueError):
    """What was wrong, where, and what to do: exit code 2."""


class DivergedError(RuntimeError):
    """The loss is no longer finite: exit code 1."""


class AbandonedError(RuntimeError):
    """A signal came during a test, which the resumed run will make."""


class StoppedError(RuntimeError):
    """A signal asked the run to stop; it has saved what it had: exit code 75, "try again"."""
