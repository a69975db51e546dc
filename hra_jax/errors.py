"""The errors that a user's input can cause."""


class UserError(ValueError):
    """A value that the user gave is wrong: the message is one line that names the value and what is allowed.

    Commands print the message without a traceback and exit with status 2.
    """


class DamagedError(UserError):
    """Stored data is not what was stored: the message names the file, or the array in it, and what is wrong."""
