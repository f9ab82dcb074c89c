"""The one error a user may cause: told in one line, exit code 2."""

from __future__ import annotations


class BadInput(Exception):
    """Something the user gave cannot be used. The message is one line naming the file, the sample and the value."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def needs_extra(extra: str, package: str) -> BadInput:
    """The error for a missing optional package: names the extra that brings it."""
    return BadInput(f"this needs the package {package}: pip install 'intarsia[{extra}]'")


class TooLong(BadInput):
    """A text has more pieces than the system takes; such samples are counted and left out of training, never cut."""
