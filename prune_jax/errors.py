"""The one exception a user should ever see."""


class UserError(Exception):
    """A mistake the user can mend: bad flag, missing file, malformed row.

    launch.py prints its text alone, without a traceback, and exits with code 2. The text names the key or file,
    the value found, and what is allowed.
    """
