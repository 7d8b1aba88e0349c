"""The one exception that means "the user can fix this", and how its message shows foreign text."""

import reprlib

LONGEST = 2000
"""Characters of a message; a file may hold a name of a million."""


class UserError(Exception):
    """A fault the user can cause and repair: a wrong setting, a missing folder, no space.

    The message says what is wrong, where, and what to do about it, in one line. The command line
    prints it without a traceback and exits with code 2; every other exception is a bug.
    Names out of damaged files are made `printable`.
    """

    def __init__(self, message: str) -> None:
        text = printable(message)
        super().__init__(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")


def printable(text: str) -> str:
    """`text` in one line, control characters escaped: no name moves the terminal's cursor."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def shown(value: object) -> str:
    """`repr` for messages: short and shallow, whatever a file holds."""
    return reprlib.repr(value)


REDO = "repeat the stage that wrote it, with --force"
"""What to do about a damaged file of a finished stage; a message's end."""
