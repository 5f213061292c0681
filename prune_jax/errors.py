"""The exceptions that end a command with a message and no traceback, and what is taken from a library's own."""


class UserError(Exception):
    """A mistake the user can mend: bad flag, missing file, malformed row.

    The command line prints its text alone and exits with code 2. The text names the key or the file, the value that was
    given, and what is allowed.
    """


class Stopped(Exception):
    """A run that ended early with its checkpoints in order: a signal, or a loss that is not finite.

    The command line prints its text alone and exits with `exit_code`.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Diverged(Stopped):
    """A run that was stopped because its loss was not finite.

    It has an exit code of its own, so that whoever started the process can tell it from a crash.
    """

    EXIT_CODE = 3

    def __init__(self, message: str):
        super().__init__(message, self.EXIT_CODE)


class Collapsed(Diverged):
    """A run whose network answers as without having seen an input, or has no weight left.

    It has Diverged's exit code: a search counts both as trials that failed, not as crashes.
    """


class LeftAlone(Stopped):
    """A run of several processes one of which has ended or does not answer.

    The process ends without waiting for the others.
    """

    EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again

    def __init__(self, message: str):
        super().__init__(message, self.EXIT_CODE)


def first_line(error: Exception) -> str:
    """What a library's exception says, for a message of ours: its first line, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
