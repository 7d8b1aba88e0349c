"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A fault the user can cause and repair: a wrong setting, a missing folder, no space.

    The message says what is wrong, where, and what to do about it, in one line. The command line
    prints it without a traceback and exits with code 2; every other exception is a bug.
    """


REDO = "repeat the stage that wrote it, with --force"
"""What to do about a damaged file of a finished stage; a message's end."""
