"""Text of strangers, such as names of files, as a page or a terminal may show it."""

from __future__ import annotations

import unicodedata

# Controls, formats (direction marks among them), line and paragraph separators, and halves of characters.
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    r"""Write characters that nobody sees as escapes, such as marks that turn the direction of the text around.

    Joiners stay as they are: scripts and emoji need them, and they move nothing.

    Examples:
        >>> print(visible("photo\u202egpj.exe"))
        photo\u202egpj.exe
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _INVISIBLE and character not in _JOINERS
        else character
        for character in text
    )
