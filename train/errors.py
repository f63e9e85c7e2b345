"""The error for mistakes that a user can mend, and for a run that diverged."""


class UserError(ValueError):
    """What was wrong, where, and what to do; the command line prints it and exits with 2."""


class DivergedError(RuntimeError):
    """The loss is no longer finite; the command line prints it and exits with 1."""
