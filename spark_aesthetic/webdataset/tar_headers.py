"""What the headers of a tar file say about its members, in the formats ustar, GNU and PAX. Opens no file."""

from __future__ import annotations

import struct
import tarfile
from posixpath import dirname, join, normpath
from zlib import adler32

# Name, size, checksum, kind, magic and prefix, at their places in the header of POSIX.
_FIELDS = struct.Struct("100s24x12s12x8sc100x6s82x155s12x")
_LINK_NAME = slice(157, 257)

_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)

# Notes of GNU tar and Solaris about other entries.
_NOTES = (b"A", b"D", b"E", b"I", b"N", b"V")
_CONTINUED = b"M"

# POSIX asks that a kind which the reader does not know is read as a file.
_WITHOUT_CONTENT = frozenset(tarfile.SUPPORTED_TYPES) - frozenset(tarfile.REGULAR_TYPES)

# Headers with names and records of the next file, or of all that follow.
ABOUT = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE,
)  # fmt: skip

# The records that are kept; all that begin with the last one count as it. The header of a sparse file may have a
# made-up name, and its own in a record.
_SPARSE, _SPARSE_NAME = "GNU.sparse", "GNU.sparse.name"
_RECORDS = frozenset({"path", "linkpath", "size", _SPARSE_NAME, _SPARSE})

# What a header's checksum is taken over in its own place.
_BLANK = 8 * ord(" ")

# Linux has no longer path.
_MAX_NAME = 4096

# Characters at the end of a longer name that are kept, for its extension.
_NAME_END = 256


class DamageError(Exception):
    """What was read is no tar file, or not all of one."""


def member(block: bytes, name: str, size: int, kind: bytes, told: dict[str, str]) -> tuple[str, int, str, str, bool]:
    """Describe a member of the archive by its header and the records about it.

    Args:
        block: The header.
        name: From the header, as are `size` and `kind`.
        size: Bytes that follow the header, unless a record gives another size.
        kind: The type flag.
        told: The records.

    Returns:
        Its name; the bytes that follow the header; the name it links to, empty if it is no link; why its bytes cannot
        be had, empty if nothing speaks against it; and whether a reader gives it, which is so for files and links
        alone. This is a plain tuple because a named one makes reading headers a sixth slower.

    Raises:
        DamageError: A record has no valid size.
    """
    name = told.get(_SPARSE_NAME) or told.get("path", name)
    size = _size(told["size"]) if "size" in told else size
    fault = _fault(kind, name, is_sparse=_SPARSE in told)
    if len(name) > _MAX_NAME:
        name = f"{name[: _MAX_NAME - _NAME_END]}…{name[-_NAME_END:]}"
    if kind in _LINKS:
        path = told.get("linkpath") or _text(block[_LINK_NAME])
        # A hard link begins at the root of the archive, a symbolic one in its own folder.
        return name, 0, normpath(path if kind == tarfile.LNKTYPE else join(dirname(name), path)), fault, True
    if kind in _WITHOUT_CONTENT:
        return name, 0, "", fault, False
    # Before POSIX a folder was a file whose name says so.
    return name, size, "", fault, kind not in _NOTES and not name.endswith("/")


def parse_header(block: bytes) -> tuple[str, int, bytes]:
    """Give the name, the size and the kind that a header states.

    Raises:
        DamageError: It is no header.
    """
    name, size, checksum, kind, magic, prefix = _FIELDS.unpack(block)
    try:
        # The lower half of Adler's is the sum of all bytes and one, modulo 65521; sum() takes twenty times as long.
        told = _number(checksum)
        if (told + sum(checksum) - _BLANK + 1 - (adler32(block) & 0xFFFF)) % 65521 and told != _signed_sum(block):
            raise DamageError("the checksum of a header is another")
        length = _number(size)
    except ValueError as error:
        raise DamageError("no header of a file") from error
    # GNU has other things in the place of the prefix.
    folder = _text(prefix) if magic == tarfile.POSIX_MAGIC[:6] else ""
    return f"{folder}/{_text(name)}" if folder else _text(name), length, kind


def _signed_sum(block: bytes) -> int:
    """The checksum as tars of before POSIX took it, whose bytes go from -128 to 127."""
    return sum(memoryview(block[:148] + b" " * 8 + block[156:]).cast("b"))


def _fault(kind: bytes, name: str, *, is_sparse: bool) -> str:
    """Why a file cannot be had whose size is known, so that the next one can; empty if nothing speaks against it."""
    if is_sparse or kind == tarfile.GNUTYPE_SPARSE:
        return "a sparse file, of which not all bytes are there"
    if kind == _CONTINUED:
        return "the end of a file that begins in another volume"
    if len(name) > _MAX_NAME:
        return f"a file with a name of {len(name)} characters, more than {_MAX_NAME}"
    return ""


def _number(field: bytes) -> int:
    # Sizes that octal digits cannot hold are binary, with a mark.
    number = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b" \0") or b"0", 8)
    if number < 0:
        raise ValueError("negative")
    return number


def _size(text: str) -> int:
    # Longer ones Python refuses to read, and no file has them.
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise DamageError(f"a PAX header with the size {text[:20]!r}")
    return int(text)


def _text(field: bytes) -> str:
    # Two names that are not UTF-8 stay two names.
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def records(kind: bytes, content: bytes) -> dict[str, str]:
    """The records that matter here of what a header says about the next file, or about all that follow."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": _text(content)}
    if kind == tarfile.GNUTYPE_LONGLINK:
        return {"linkpath": _text(content)}
    return _pax_records(content)


def _pax_records(content: bytes) -> dict[str, str]:
    """Of a PAX header: each its length, a blank, a name, =, a value and a line feed."""
    found = {}
    content, at = content.rstrip(b"\0"), 0
    while at < len(content):
        # A length of more digits than these is greater than any header.
        length, blank, _ = content[at : at + 12].partition(b" ")
        end = at + int(length) if blank and length.isdigit() else at
        name, equals, value = content[at + len(length) + 1 : end - 1].partition(b"=")
        if not equals or content[end - 1 : end] != b"\n":
            raise DamageError("a PAX header that is none")
        key = _text(name)
        if key in _RECORDS:
            found[key] = value.decode("utf-8", "backslashreplace")
        if key.startswith(_SPARSE):
            found[_SPARSE] = ""
        at = end
    return found
