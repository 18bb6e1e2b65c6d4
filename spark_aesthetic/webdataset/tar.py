"""Read and write tar files sequentially, without seeking back. This module is independent of samples and Spark.

Python's tarfile treats a truncated or overwritten header as the end of the archive. It is also several times slower per
header, which dominates for small images. Only its constants are used, and its TarInfo to write headers.
"""

from __future__ import annotations

import errno
import tarfile
from bisect import bisect
from collections.abc import Callable, Iterator
from posixpath import normpath
from typing import IO

from spark_aesthetic.webdataset.compressed import CompressionError
from spark_aesthetic.webdataset.tar_headers import ABOUT, DamageError, member, parse_header, records

# Bytes, possibly as a view without a copy.
Buffer = bytes | memoryview

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(_BLOCK)

# Offsets of the flag, in an old GNU header and in each extension block, that a further block of the sparse map follows.
_GOES_ON, _GOES_ON_AGAIN = 482, 504

# A longer chain of links is treated as a cycle; Linux has the same limit.
_MAX_LINKS = 40

# A gap larger than _SEEK_BYTES is skipped by seeking, or read in pieces if the file is not seekable.
_SEEK_BYTES, _PIECE_BYTES = 64 << 10, 1 << 20

# Default size limit of a file.
MAX_MEMBER_BYTES = 256 << 20

# Limit for the names and PAX records of one file. Linux paths are at most 4 kB, and the remaining records are comments.
_MAX_NOTES_BYTES = 1 << 20

# Zeros between two archives normally fill at most one tape record. More than this is an attack on readers.
_MAX_ZEROS = 1 << 30

# Limit for bytes read or skipped to follow the links of one archive. Each of a thousand links to a file reads it again.
_MAX_LINKED_BYTES = 8 << 30

# Limit for the characters of all possible link targets. Later names are treated as missing.
_MAX_HELD = 256 << 20

# The largest file offset of file systems and of Python's `seek`.
_MAX_OFFSET = 2**63 - 1

# Characters of a name that an error shows.
_SHOWN = 100


class MemberError(Exception):
    """A file cannot be read, but reading the archive can continue."""


class LinkError(MemberError):
    """A link leads to something that is not in the archive."""


class TooLargeError(MemberError):
    """A file is larger than the reader's limit."""


class TarReader:
    """Reads the files of a tar file in order.

    It supports ustar, GNU and PAX names, sizes above 8 GiB and concatenated archives. A hard or symbolic link is
    returned as a file with its target's content. Folders, devices and pipes are skipped.

    Args:
        file: A file open for reading, which is read forward only.
        again: Opens the same file once more. It is called only if the content of a link is requested.
        max_bytes: Larger files are not read.

    Attributes:
        max_bytes: The limit from the argument.
        place: The byte offset of the last header, for errors.
        ended: Whether the last block was an end mark, so that every file before it is complete.
    """

    def __init__(
        self, file: IO[bytes], again: Callable[[], IO[bytes]] | None = None, max_bytes: int = MAX_MEMBER_BYTES
    ) -> None:
        self._file, self._again, self.max_bytes = file, again, max_bytes
        self.place = 0
        self.ended = False
        # Bytes read so far, offset of the next header, size of the last file.
        self._at = self._next = self._size = 0
        self._target = self._fault = ""
        self._links: _Links | None = None

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield names and sizes (0 for links and unreadable files); `content` returns the bytes of the last file.

        Raises:
            DamageError: A header is invalid, or the end of the archive is missing.
        """
        everywhere: dict[str, str] = {}
        own: dict[str, str] = {}
        notes = 0
        while (block := self._header()) is not None:
            name, size, kind = parse_header(block)
            if self.ended:
                # The next of several concatenated archives begins.
                everywhere, own, notes, self.ended = {}, {}, 0, False
            if kind in ABOUT:
                notes += _BLOCK + size
                if notes > _MAX_NOTES_BYTES:
                    raise DamageError(f"names and PAX records of one file of more than {_MAX_NOTES_BYTES} bytes")
                self._expect(size)
                told = records(kind, self._read(size))
                if kind == tarfile.XGLTYPE:
                    everywhere |= told
                else:
                    own |= told
                continue
            told = everywhere | own
            if notes:
                own, notes = {}, 0
            if kind == tarfile.GNUTYPE_SPARSE:
                self._pass_places(block)
            name, self._size, self._target, self._fault, is_given = member(block, name, size, kind, told)
            self._expect(self._size)
            if is_given:
                yield name, 0 if self._fault else self._size

    @property
    def target(self) -> str:
        """The name that the last file links to; empty if it is not a link."""
        return self._target

    def content(self) -> bytes:
        """Read the bytes of the last file. Call this at most once per file.

        Raises:
            DamageError: The archive ends within the file.
            MemberError: The archive does not contain the bytes in one piece, or the name is too long.
            LinkError: The file is a link to something that is not in the archive.
            TooLargeError: The file, or its link target, is larger than `max_bytes` and was not read.
        """
        if self._fault:
            raise MemberError(self._fault)
        if not self._target:
            if self._size > self.max_bytes:
                raise TooLargeError
            return self._read(self._size)
        if self._links is None:
            if self._again is None:
                raise LinkError(f"a link to {self._target[:_SHOWN]}")
            self._links = _Links(self._again, self.max_bytes)
        return self._links.content(self._target, self.place)

    def leads_to_folder(self) -> bool:
        """Whether the last file is a link to a folder of the archive; valid after `content` has raised LinkError."""
        return bool(self._target) and self._links is not None and self._links.is_folder(self._target)

    @property
    def fault(self) -> str:
        """Why the last file cannot be read, according to its header; empty if it can."""
        return self._fault

    def _header(self) -> bytes | None:
        """Return the next block that is not an end mark, or None at the end of the file."""
        gap = self._next - self._at
        if gap > _SEEK_BYTES:
            _pass_over(self._file, gap)
            self._at, gap = self._next, 0
        self.place = self._next
        block = self._read(gap + _BLOCK)[gap:]
        # In concatenated archives, the next one follows an end mark and any number of zeros.
        zeros = self._at
        while block == _END:
            self.ended = True
            self.place = self._at
            if self._at - zeros > _MAX_ZEROS:
                raise DamageError(f"more than {_MAX_ZEROS} zeros follow an end mark")
            block = _reading(self._file, _BLOCK)
            self._at += len(block)
            if len(block) < _BLOCK:
                if block.strip(b"\0"):
                    raise DamageError("something other than an archive follows the end mark")
                return None
        self._next = self._at
        return block

    def _pass_places(self, block: bytes) -> None:
        """Skip the extension blocks of an old GNU sparse header, which its size does not include."""
        goes_on = block[_GOES_ON]
        while goes_on:
            goes_on = self._read(_BLOCK)[_GOES_ON_AGAIN]

    def _expect(self, size: int) -> None:
        """Set the offset of the next header to follow `size` bytes of content.

        Raises:
            DamageError: The offset is larger than any file.
        """
        self._next = self._at + size + -size % _BLOCK
        if self._next > _MAX_OFFSET:
            raise DamageError(f"a file of {size} bytes, more than any file system has")

    def _read(self, size: int) -> bytes:
        content = _whole(self._file, size)
        self._at += size
        return content


class _Links:
    """Resolves links with a second pass over the headers, which runs only if the content of a link is requested."""

    def __init__(self, again: Callable[[], IO[bytes]], max_bytes: int) -> None:
        self._again, self._max_bytes = again, max_bytes
        self._headers = TarReader(again())
        self._rest = iter(self._headers)
        # For each name: the offset and size of its content, its link target, and why it cannot be read.
        self._places: dict[str, tuple[int, int, str, str]] = {}
        self._sorted: list[str] | None = None
        self._file = again()
        self._at = self._cost = self._held = 0

    def content(self, target: str, place: int) -> bytes:
        """Return the bytes of a name from the archive before `place`, or from the rest if the name comes later."""
        self._look(place)
        for _ in range(_MAX_LINKS):
            if target not in self._places:
                self._look(None)
            if target not in self._places:
                break
            begin, size, further, fault = self._places[target]
            if fault:
                raise MemberError(f"a link to {target[:_SHOWN]}, which is {fault}")
            if not further:
                return self._read(begin, size)
            target = further
        raise LinkError(f"a link to {target[:_SHOWN]}, which the archive does not hold")

    def is_folder(self, name: str) -> bool:
        self._look(None)
        if self._sorted is None:
            self._sorted = sorted(self._places)
        at = bisect(self._sorted, f"{name}/")
        return at < len(self._sorted) and self._sorted[at].startswith(f"{name}/")

    def _look(self, place: int | None) -> None:
        try:
            while place is None or self._headers.place < place:
                found = next(self._rest, None)
                if found is None:
                    return
                self._held += len(found[0])
                if self._held > _MAX_HELD:
                    raise DamageError("more names than fit into memory")
                headers = self._headers
                self._places[normpath(found[0])] = (headers._at, found[1], headers.target, headers.fault)
        # The first pass reports the damage when it reaches it.
        except DamageError:
            self._rest = iter(())

    def _read(self, begin: int, size: int) -> bytes:
        if size > self._max_bytes:
            raise TooLargeError
        back = begin < self._at and not self._file.seekable()
        self._cost += size + (0 if self._file.seekable() else begin - (0 if back else self._at))
        if self._cost > _MAX_LINKED_BYTES:
            raise LinkError(f"one of the links for which more than {_MAX_LINKED_BYTES >> 30} GiB would be read")
        if back:
            # A file that is not seekable is opened again. There may be thousands of links, so the old one is closed.
            self._file.close()
            self._file, self._at = self._again(), 0
        _pass_over(self._file, begin - self._at)
        content = _whole(self._file, size)
        self._at = begin + size
        return content


def _pass_over(file: IO[bytes], gap: int) -> None:
    """Skip bytes by seeking, or by reading if the file is not seekable."""
    try:
        if file.seekable():
            file.seek(gap, 1)
            return
    # Files that cannot seek raise different exceptions. Only a real I/O error has an errno other than EINVAL.
    except (ValueError, OverflowError, OSError) as error:
        if gap < 0 or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
            raise
    while gap > 0:
        piece = _reading(file, min(gap, _PIECE_BYTES))
        if not piece:
            raise DamageError("the file ends here")
        gap -= len(piece)


def _whole(file: IO[bytes], size: int) -> bytes:
    content = _reading(file, size)
    if len(content) < size:
        raise DamageError("the file ends here")
    return content


def _reading(file: IO[bytes], size: int) -> bytes:
    try:
        return file.read(size)
    except (OverflowError, MemoryError) as error:
        raise DamageError(f"a file of {size} bytes, which does not fit into memory") from error
    except CompressionError as error:
        raise DamageError(str(error)) from error


def entry(name: str, content: Buffer) -> Iterator[Buffer]:
    """Yield the parts of a tar entry. They depend only on name and bytes, not on user or time."""
    size = len(content)
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    yield header.tobuf(tarfile.PAX_FORMAT)
    yield content
    yield bytes(-size % _BLOCK)


def end(size: int) -> bytes:
    """Return the end mark and padding of a tar file with `size` bytes."""
    return bytes(2 * _BLOCK + -(size + 2 * _BLOCK) % tarfile.RECORDSIZE)
