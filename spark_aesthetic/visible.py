"""Make untrusted text, such as file names, safe to show on a page or a terminal."""

from __future__ import annotations

import unicodedata

# Control and format characters (direction marks among them), line and paragraph separators, and surrogates.
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    r"""Write invisible characters as escapes, such as marks that reverse the direction of the text.

    Joiners stay: scripts and emoji need them, and they do not reorder text.

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
