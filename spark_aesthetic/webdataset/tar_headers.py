"""Parse the headers of tar members in the formats ustar, GNU and PAX. This module opens no file."""

from __future__ import annotations

import struct
import tarfile
from posixpath import dirname, join, normpath
from zlib import adler32

# The fields name, size, checksum, type flag, magic and prefix of a POSIX header.
_FIELDS = struct.Struct("100s24x12s12x8sc100x6s82x155s12x")
_LINK_NAME = slice(157, 257)

_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)

# Type flags of GNU tar and Solaris for metadata entries.
_NOTES = (b"A", b"D", b"E", b"I", b"N", b"V")
_CONTINUED = b"M"

# POSIX requires that unknown type flags are read as regular files.
_WITHOUT_CONTENT = frozenset(tarfile.SUPPORTED_TYPES) - frozenset(tarfile.REGULAR_TYPES)

# Type flags of headers with names and records for the next file, or for all following files.
ABOUT = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE,
)  # fmt: skip

# The records that are kept. Every record that begins with _SPARSE is stored as _SPARSE. The header of a sparse file may
# have a generated name; the real name is then in the record _SPARSE_NAME.
_SPARSE, _SPARSE_NAME = "GNU.sparse", "GNU.sparse.name"
_RECORDS = frozenset({"path", "linkpath", "size", _SPARSE_NAME, _SPARSE})

# A header's checksum counts its own eight bytes as spaces.
_BLANK = 8 * ord(" ")

# The maximum path length of Linux.
_MAX_NAME = 4096

# When a longer name is shortened, this many characters at its end are kept, so that its extension survives.
_NAME_END = 256


class DamageError(Exception):
    """The file is not a tar file, or it is incomplete."""


def member(block: bytes, name: str, size: int, kind: bytes, told: dict[str, str]) -> tuple[str, int, str, str, bool]:
    """Describe an archive member from its header `block` and the records `told` about it.

    `name`, `size` and `kind` (the type flag) are fields of the header. A record may override the name or the size.

    Returns:
        The name; the bytes that follow the header; the link target, empty if it is not a link; why the member cannot be
        read, empty if it can; and whether a reader returns it, which is true only for files and links. This is a plain
        tuple because a named tuple makes reading headers a sixth slower.

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
        # The target of a hard link is relative to the archive's root, that of a symbolic link to the link's folder.
        return name, 0, normpath(path if kind == tarfile.LNKTYPE else join(dirname(name), path)), fault, True
    if kind in _WITHOUT_CONTENT:
        return name, 0, "", fault, False
    # Before POSIX, a folder was a file with a trailing slash in its name.
    return name, size, "", fault, kind not in _NOTES and not name.endswith("/")


def parse_header(block: bytes) -> tuple[str, int, bytes]:
    """Return the name, the size and the type flag of a header.

    Raises:
        DamageError: The block is not a header.
    """
    name, size, checksum, kind, magic, prefix = _FIELDS.unpack(block)
    try:
        # The lower half of Adler-32 is 1 plus the sum of all bytes, modulo 65521. sum() takes twenty times as long.
        told = _number(checksum)
        if (told + sum(checksum) - _BLANK + 1 - (adler32(block) & 0xFFFF)) % 65521 and told != _signed_sum(block):
            raise DamageError("a header does not match its checksum")
        length = _number(size)
    except ValueError as error:
        raise DamageError("a block that is not a tar header") from error
    # GNU headers use the bytes of the prefix field differently.
    folder = _text(prefix) if magic == tarfile.POSIX_MAGIC[:6] else ""
    return f"{folder}/{_text(name)}" if folder else _text(name), length, kind


def _signed_sum(block: bytes) -> int:
    """Return the checksum as tar programs before POSIX computed it, over signed bytes."""
    return sum(memoryview(block[:148] + b" " * 8 + block[156:]).cast("b"))


def _fault(kind: bytes, name: str, *, is_sparse: bool) -> str:
    """Return why a file cannot be read, or an empty string. Its size is known, so the next file can still be read."""
    if is_sparse or kind == tarfile.GNUTYPE_SPARSE:
        return "a sparse file, stored without its runs of zeros"
    if kind == _CONTINUED:
        return "the end of a file that begins in another volume"
    if len(name) > _MAX_NAME:
        return f"a file with a name of {len(name)} characters, more than {_MAX_NAME}"
    return ""


def _number(field: bytes) -> int:
    # A first byte of 0x80 marks a binary number, which is used for sizes that octal digits cannot represent.
    number = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b" \0") or b"0", 8)
    if number < 0:
        raise ValueError("negative")
    return number


def _size(text: str) -> int:
    # No file has a size of more than 18 digits, and Python refuses to parse very long numbers.
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise DamageError(f"a PAX header with the size {text[:20]!r}")
    return int(text)


def _text(field: bytes) -> str:
    # Escaping invalid UTF-8 keeps different names different.
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def records(kind: bytes, content: bytes) -> dict[str, str]:
    """Return the relevant records of a header about the next file or all following files."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": _text(content)}
    if kind == tarfile.GNUTYPE_LONGLINK:
        return {"linkpath": _text(content)}
    return _pax_records(content)


def _pax_records(content: bytes) -> dict[str, str]:
    """Parse PAX records. Each is its length, a space, a name, =, a value and a line feed."""
    found = {}
    content, at = content.rstrip(b"\0"), 0
    while at < len(content):
        # A length with more digits than fit into 12 bytes exceeds any header.
        length, blank, _ = content[at : at + 12].partition(b" ")
        end = at + int(length) if blank and length.isdigit() else at
        name, equals, value = content[at + len(length) + 1 : end - 1].partition(b"=")
        if not equals or content[end - 1 : end] != b"\n":
            raise DamageError("a malformed PAX header")
        key = _text(name)
        if key in _RECORDS:
            found[key] = value.decode("utf-8", "backslashreplace")
        if key.startswith(_SPARSE):
            found[_SPARSE] = ""
        at = end
    return found
