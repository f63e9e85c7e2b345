"""The error for mistakes that a user can mend."""


class UserError(ValueError):
    """What was wrong, where, and what to do; the command line prints it and exits with 2."""
