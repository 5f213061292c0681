"""The two exceptions that end a run with a message and no traceback, and what is taken from a library's own."""


class UserError(Exception):
    """A mistake the user can mend: bad flag, missing file, malformed row.

    launch.py prints its text alone and exits with code 2. The text names the key or file, the value found, and what is
    allowed.
    """


class Stopped(Exception):
    """A run that ended early with its checkpoints in order: a signal, or a loss that is not finite.

    launch.py prints its text alone and exits with `exit_code`.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: Exception) -> str:
    """What a library's exception says, for a message of ours: its first line, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
