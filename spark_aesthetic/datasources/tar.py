"""Tar files, from one end to the other without a step back: whole files in and out. Knows no samples and no Spark.

Python's tarfile takes a header that is cut off or overwritten for the end of the archive, and spends several times as
long on each header, which for small images is most of the time; its TarInfo writes the headers here.
"""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator
from typing import IO

# Bytes, where they lie.
Buffer = bytes | memoryview

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(_BLOCK)

# Name, size, checksum, kind, magic and prefix, at their places in the header of POSIX.
_FIELDS = struct.Struct("100s24x12s12x8sc100x6s82x155s12x")

# What a header's checksum is taken over in its own place.
_BLANK = 8 * ord(" ")

# Further than this a file is not read but left out.
_SEEK_BYTES = 64 << 10


class DamageError(Exception):
    """What was read is no tar file, or not all of one."""


class TarReader:
    """The regular files of a tar file, in their order.

    Names of ustar, GNU and PAX are understood, and sizes past 8 GiB. Links, folders and devices are passed over.

    Args:
        file: Open for reading; it may be compressed as long as it can be read, and is read forward alone.

    Attributes:
        place: The byte at which the last header begins, for errors.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.place = 0
        # Read so far, where the next header begins, and the size of the last file.
        self._at = self._next = self._size = 0

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Names and sizes; `content` gives the bytes of the last one.

        Raises:
            DamageError: There is something else where a header should be, or the end is missing.
        """
        everywhere: dict[str, str] = {}
        own: dict[str, str] = {}
        while (block := self._header()) != _END:
            name, size, kind = _parse(block)
            if kind == tarfile.GNUTYPE_LONGNAME:
                own["path"] = _text(self._take(size))
            elif kind == tarfile.XHDTYPE:
                own |= _records(self._take(size))
            elif kind == tarfile.XGLTYPE:
                everywhere |= _records(self._take(size))
            elif kind == tarfile.GNUTYPE_LONGLINK:
                self._take(size)
            else:
                told = everywhere | own
                own = {}
                if kind == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in told):
                    raise DamageError("a sparse file, of which not all bytes are there")
                name, size = told.get("path", name), int(told.get("size", size))
                regular = kind in tarfile.REGULAR_TYPES
                # Only what tar does not know has content beside regular files.
                if regular or kind not in tarfile.SUPPORTED_TYPES:
                    self._size, self._next = size, self._at + size + -size % _BLOCK
                # Before POSIX a folder was a file whose name says so.
                if regular and not name.endswith("/"):
                    yield name, size

    def content(self) -> bytes:
        """The bytes of the file that was given last; once."""
        return self._read(self._size)

    def _header(self) -> bytes:
        gap = self._next - self._at
        if gap > _SEEK_BYTES:
            self._file.seek(gap, 1)
            self._at, gap = self._next, 0
        self.place = self._next
        block = self._read(gap + _BLOCK)[gap:]
        self._next = self._at
        return block

    def _take(self, size: int) -> bytes:
        self._next = self._at + size + -size % _BLOCK
        return self._read(size)

    def _read(self, size: int) -> bytes:
        content = self._file.read(size)
        if len(content) < size:
            raise DamageError("it ends here")
        self._at += size
        return content


def _parse(block: bytes) -> tuple[str, int, bytes]:
    name, size, checksum, kind, magic, prefix = _FIELDS.unpack(block)
    try:
        if _number(checksum) != sum(block) - sum(checksum) + _BLANK:
            raise DamageError("the checksum of a header is another")
        length = _number(size)
    except ValueError as error:
        raise DamageError("no header of a file") from error
    # GNU has other things in the place of the prefix.
    folder = _text(prefix) if magic == tarfile.POSIX_MAGIC[:6] else ""
    return f"{folder}/{_text(name)}" if folder else _text(name), length, kind


def _number(field: bytes) -> int:
    # Sizes that octal digits cannot hold are binary, with a mark.
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b" \0") or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _records(content: bytes) -> dict[str, str]:
    """Of a PAX header: each its length, a blank, a name, =, a value and a line feed."""
    found = {}
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        record, content = (content[: int(length)], content[int(length) :]) if length.isdigit() else (b"", b"")
        name, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not equals or not record.endswith(b"\n"):
            raise DamageError("a PAX header that is none")
        found[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return found


def entry(name: str, content: Buffer) -> Iterator[Buffer]:
    """A file as a tar file holds it, in parts: the same name and bytes give the same, whoever writes it and when."""
    size = len(content)
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    yield header.tobuf(tarfile.PAX_FORMAT)
    yield content
    yield bytes(-size % _BLOCK)


def end(size: int) -> bytes:
    """What closes a tar file of so many bytes."""
    return bytes(2 * _BLOCK + -(size + 2 * _BLOCK) % tarfile.RECORDSIZE)
