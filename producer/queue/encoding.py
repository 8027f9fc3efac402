"""Names and words of the system that are not UTF-8. Neither Redis nor JSON can hold them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from .errors import UserError


def is_utf8(name: str) -> bool:
    """Whether a name as Python has it from the system was UTF-8 there."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def readable(name: str) -> str:
    """The name with \\xe9 and the like for what is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def check_words(words: Iterable[str]) -> None:
    """Raises UserError if a word of a command line, mostly the name of a file, is not UTF-8."""
    for word in words:
        if not is_utf8(word):
            raise UserError(f"'{readable(word)}' is not UTF-8; rename the file, or write the option in UTF-8")
