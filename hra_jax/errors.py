"""The error that a user's input can cause."""


class UserError(ValueError):
    """A value that the user gave is wrong: the message is one line that names the value and what is allowed.

    Commands print the message without a traceback and exit with status 2.
    """
