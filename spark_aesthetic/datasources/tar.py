"""Tar files, from one end to the other without a step back: whole files in and out. Knows no samples and no Spark.

Python's tarfile takes a header that is cut off or overwritten for the end of the archive, and spends several times as
long on each header, which for small images is most of the time; its TarInfo writes the headers here.
"""

from __future__ import annotations

import errno
import struct
import tarfile
from collections.abc import Callable, Iterator
from posixpath import dirname, join, normpath
from typing import IO

# Bytes, where they lie.
Buffer = bytes | memoryview

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(_BLOCK)

# Name, size, checksum, kind, magic and prefix, at their places in the header of POSIX.
_FIELDS = struct.Struct("100s24x12s12x8sc100x6s82x155s12x")
_LINK_NAME = slice(157, 257)

_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)

# Notes of GNU tar and Solaris about other entries. POSIX asks that every other unknown kind is read as a file.
_NOTES = (b"A", b"D", b"E", b"I", b"N", b"V")
_CONTINUED = b"M"

# A link may lead to a link; more than so many are taken for a circle, as Linux does.
_MAX_LINKS = 40

# What a header's checksum is taken over in its own place.
_BLANK = 8 * ord(" ")

# Further than this a file is not read but left out.
_SEEK_BYTES = 64 << 10


class DamageError(Exception):
    """What was read is no tar file, or not all of one."""


class LinkError(Exception):
    """A link to something that the archive does not hold."""


class TarReader:
    """Reads the files of a tar file in their order.

    Names of ustar, GNU and PAX are understood, and sizes past 8 GiB. Archives that were concatenated are read to the
    last one. A hard or symbolic link is a file with the content of the one it leads to. Folders, devices and pipes are
    skipped.

    Args:
        file: Open for reading; it may be compressed, and is read forward only.
        again: Opens the same file once more. It is called only if the content of a link is asked for.

    Attributes:
        place: The byte at which the last header begins, for errors.
        ended: The last block read is an end mark, so that every file before it is whole.
    """

    def __init__(self, file: IO[bytes], again: Callable[[], IO[bytes]] | None = None) -> None:
        self._file, self._again = file, again
        self.place = 0
        self.ended = False
        # Read so far, where the next header begins, and the size of the last file.
        self._at = self._next = self._size = 0
        self._target = ""
        self._links: _Links | None = None

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Names and sizes, 0 for a link; `content` gives the bytes of the last one.

        Raises:
            DamageError: There is something else where a header should be, or the end is missing.
        """
        everywhere: dict[str, str] = {}
        own: dict[str, str] = {}
        while (block := self._header()) is not None:
            name, size, kind = _parse(block)
            if self.ended:
                # The next one of several archives.
                everywhere, own, self.ended = {}, {}, False
            if kind == tarfile.GNUTYPE_LONGNAME:
                own["path"] = _text(self._take(size))
            elif kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                own |= _records(self._take(size))
            elif kind == tarfile.XGLTYPE:
                everywhere |= _records(self._take(size))
            elif kind == tarfile.GNUTYPE_LONGLINK:
                own["linkpath"] = _text(self._take(size))
            else:
                told = everywhere | own
                own = {}
                if kind == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in told):
                    raise DamageError("a sparse file, of which not all bytes are there")
                if kind == _CONTINUED:
                    raise DamageError("the end of a file that begins in another volume")
                name, size = told.get("path", name), _size(told["size"]) if "size" in told else size
                is_file = kind in tarfile.REGULAR_TYPES or kind not in (*tarfile.SUPPORTED_TYPES, *_NOTES)
                # Only what tar does not know has content beside regular files.
                if is_file or kind in _NOTES:
                    self._size, self._next = size, self._at + size + -size % _BLOCK
                if kind in _LINKS:
                    path = told.get("linkpath") or _text(block[_LINK_NAME])
                    # A hard link begins at the root of the archive, a symbolic one in its own folder.
                    self._target = normpath(path if kind == tarfile.LNKTYPE else join(dirname(name), path))
                    yield name, 0
                # Before POSIX a folder was a file whose name says so.
                elif is_file and not name.endswith("/"):
                    self._target = ""
                    yield name, size

    @property
    def target(self) -> str:
        """The name to which the last file is a link; empty if it is none."""
        return self._target

    def content(self) -> bytes:
        """Read the bytes of the file that was given last; once.

        Raises:
            DamageError: The file ends before.
            LinkError: It is a link to something that the archive does not hold.
        """
        if not self._target:
            return self._read(self._size)
        if self._links is None:
            if self._again is None:
                raise LinkError(f"a link to {self._target}")
            self._links = _Links(self._again)
        return self._links.content(self._target, self.place)

    def leads_to_folder(self) -> bool:
        """Whether the last file, for which `content` has raised LinkError, is a link to a folder of the archive."""
        return self._links is not None and self._links.is_folder(self._target)

    def _header(self) -> bytes | None:
        """The next block that is no end mark; None at the end of the file."""
        gap = self._next - self._at
        if gap > _SEEK_BYTES:
            self._skip(gap)
            gap = 0
        self.place = self._next
        block = self._read(gap + _BLOCK)[gap:]
        # Concatenated archives go on behind an end mark and any number of zeros.
        while block == _END:
            self.ended = True
            self.place = self._at
            block = self._file.read(_BLOCK)
            self._at += len(block)
            if len(block) < _BLOCK:
                if block.strip(b"\0"):
                    raise DamageError("something other than an archive follows the end mark")
                return None
        self._next = self._at
        return block

    def _skip(self, gap: int) -> None:
        try:
            self._file.seek(gap, 1)
        except (OverflowError, OSError) as error:
            # A disk has no such place, so the size in the header is wrong.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise DamageError("it ends here") from error
        self._at = self._next

    def _take(self, size: int) -> bytes:
        self._next = self._at + size + -size % _BLOCK
        return self._read(size)

    def _read(self, size: int) -> bytes:
        try:
            content = self._file.read(size)
        except (OverflowError, MemoryError) as error:
            raise DamageError(f"a file of {size} bytes, for which there is no memory") from error
        if len(content) < size:
            raise DamageError("it ends here")
        self._at += size
        return content


class _Links:
    """Finds the content of links: by a second pass over the headers, made only for an archive that has links."""

    def __init__(self, again: Callable[[], IO[bytes]]) -> None:
        self._again = again
        self._headers = TarReader(again())
        self._rest = iter(self._headers)
        # Where the content of each name begins, its size, and to which name it leads.
        self._places: dict[str, tuple[int, int, str]] = {}
        self._file = again()
        self._at = 0

    def content(self, target: str, place: int) -> bytes:
        """The bytes of a name, as an archive extracted up to `place` has it; else as the rest of the archive has it."""
        self._look(place)
        for _ in range(_MAX_LINKS):
            if target not in self._places:
                self._look(None)
            if target not in self._places:
                break
            begin, size, further = self._places[target]
            if not further:
                return self._read(begin, size)
            target = further
        raise LinkError(f"a link to {target}, which the archive does not hold")

    def is_folder(self, name: str) -> bool:
        return any(known.startswith(f"{name}/") for known in self._places)

    def _look(self, place: int | None) -> None:
        while place is None or self._headers.place < place:
            found = next(self._rest, None)
            if found is None:
                return
            self._places[normpath(found[0])] = (self._headers._at, found[1], self._headers.target)

    def _read(self, begin: int, size: int) -> bytes:
        if begin < self._at and not self._file.seekable():
            self._file, self._at = self._again(), 0
        self._file.seek(begin)
        content = self._file.read(size)
        self._at = begin + len(content)
        if len(content) < size:
            raise DamageError("it ends here")
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
    number = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b" \0") or b"0", 8)
    if number < 0:
        raise ValueError("negative")
    return number


def _size(text: str) -> int:
    # Longer ones Python refuses to read, and no file has them.
    if not text.isdecimal() or len(text) > 18:
        raise DamageError(f"a PAX header with the size {text[:20]!r}")
    return int(text)


def _text(field: bytes) -> str:
    # Two names that are not UTF-8 stay two names.
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _records(content: bytes) -> dict[str, str]:
    """Of a PAX header: each its length, a blank, a name, =, a value and a line feed."""
    found = {}
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        record, content = (content[: int(length)], content[int(length) :]) if length.isdigit() else (b"", b"")
        name, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not equals or not record.endswith(b"\n"):
            raise DamageError("a PAX header that is none")
        found[_text(name)] = value.decode("utf-8", "backslashreplace")
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
