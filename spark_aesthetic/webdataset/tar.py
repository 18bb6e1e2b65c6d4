"""Tar files, from one end to the other without a step back: whole files in and out. Knows no samples and no Spark.

Python's tarfile takes a header that is cut off or overwritten for the end of the archive, and spends several times as
long on each header, which for small images is most of the time; its TarInfo writes the headers here.
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

# Bytes, where they lie.
Buffer = bytes | memoryview

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(_BLOCK)

# Where an old GNU header, and each block behind it, says that another block with places of a sparse file follows.
_GOES_ON, _GOES_ON_AGAIN = 482, 504

# A link may lead to a link; more than so many are taken for a circle, as Linux does.
_MAX_LINKS = 40

# Further than this a file is not read but left out, or read in such pieces where it cannot be sought in.
_SEEK_BYTES, _PIECE_BYTES = 64 << 10, 1 << 20

# A file larger than this is not read unless the reader is told otherwise.
MAX_MEMBER_BYTES = 256 << 20

# Names and PAX records of one file. Linux has no path of more than 4 kB, and other records are comments.
_MAX_NOTES_BYTES = 1 << 20

# What a tar has between two archives is at most a block of a tape; more than this was built to keep readers busy.
_MAX_ZEROS = 1 << 30

# What is read, and read past, to follow the links of one file: a thousand links to one file are a thousand files.
_MAX_LINKED_BYTES = 8 << 30

# Characters of all names that links may lead to; those that come later count as not there.
_MAX_HELD = 256 << 20

# No file system has a greater file, and Python seeks no further.
_MAX_OFFSET = 2**63 - 1

# Characters of a name that an error shows.
_SHOWN = 100


class MemberError(Exception):
    """A file that cannot be had, in an archive that can be read on."""


class LinkError(MemberError):
    """A link to something that the archive does not hold."""


class TooLargeError(MemberError):
    """A file of more bytes than the reader takes."""


class TarReader:
    """Reads the files of a tar file in their order.

    Names of ustar, GNU and PAX are understood, and sizes past 8 GiB. Archives that were concatenated are read to the
    last one. A hard or symbolic link is a file with the content of the one it leads to. Folders, devices and pipes are
    skipped.

    Args:
        file: Open for reading; it may be compressed, and is read forward only.
        again: Opens the same file once more. It is called only if the content of a link is asked for.
        max_bytes: Larger files are not read.

    Attributes:
        place: The byte at which the last header begins, for errors.
        ended: The last block read is an end mark, so that every file before it is whole.
    """

    def __init__(
        self, file: IO[bytes], again: Callable[[], IO[bytes]] | None = None, max_bytes: int = MAX_MEMBER_BYTES
    ) -> None:
        self._file, self._again, self.max_bytes = file, again, max_bytes
        self.place = 0
        self.ended = False
        # Read so far, where the next header begins, and the size of the last file.
        self._at = self._next = self._size = 0
        self._target = self._fault = ""
        self._links: _Links | None = None

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Names and sizes, 0 for a link and for a file that cannot be had; `content` gives the bytes of the last one.

        Raises:
            DamageError: There is something else where a header should be, or the end is missing.
        """
        everywhere: dict[str, str] = {}
        own: dict[str, str] = {}
        notes = 0
        while (block := self._header()) is not None:
            name, size, kind = parse_header(block)
            if self.ended:
                # The next one of several archives.
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
        """The name to which the last file is a link; empty if it is none."""
        return self._target

    def content(self) -> bytes:
        """Read the bytes of the file that was given last; once.

        Raises:
            DamageError: The file ends before.
            MemberError: Its bytes are not in the archive as one piece, or its name is too long.
            LinkError: It is a link to something that the archive does not hold.
            TooLargeError: It, or what it is a link to, is larger than `max_bytes`; nothing of it was read.
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
        """Whether the last file, for which `content` has raised LinkError, is a link to a folder of the archive."""
        return bool(self._target) and self._links is not None and self._links.is_folder(self._target)

    @property
    def fault(self) -> str:
        """Why the last file cannot be had, known from its header; empty if nothing speaks against it."""
        return self._fault

    def _header(self) -> bytes | None:
        """The next block that is no end mark; None at the end of the file."""
        gap = self._next - self._at
        if gap > _SEEK_BYTES:
            _pass_over(self._file, gap)
            self._at, gap = self._next, 0
        self.place = self._next
        block = self._read(gap + _BLOCK)[gap:]
        # Concatenated archives go on behind an end mark and any number of zeros.
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
        """Go past the blocks in which old GNU headers go on, and of which their size says nothing."""
        goes_on = block[_GOES_ON]
        while goes_on:
            goes_on = self._read(_BLOCK)[_GOES_ON_AGAIN]

    def _expect(self, size: int) -> None:
        """Note that the next header follows so many bytes of content.

        Raises:
            DamageError: That is further than any file goes.
        """
        self._next = self._at + size + -size % _BLOCK
        if self._next > _MAX_OFFSET:
            raise DamageError(f"a file of {size} bytes, more than any file system has")

    def _read(self, size: int) -> bytes:
        content = _whole(self._file, size)
        self._at += size
        return content


class _Links:
    """Finds the content of links: by a second pass over the headers, made only for an archive that has links."""

    def __init__(self, again: Callable[[], IO[bytes]], max_bytes: int) -> None:
        self._again, self._max_bytes = again, max_bytes
        self._headers = TarReader(again())
        self._rest = iter(self._headers)
        # Where the content of each name begins, its size, to which name it leads, and why it cannot be had.
        self._places: dict[str, tuple[int, int, str, str]] = {}
        self._sorted: list[str] | None = None
        self._file = again()
        self._at = self._cost = self._held = 0

    def content(self, target: str, place: int) -> bytes:
        """The bytes of a name, as an archive extracted up to `place` has it; else as the rest of the archive has it."""
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
                    raise DamageError("more names than there is memory for")
                headers = self._headers
                self._places[normpath(found[0])] = (headers._at, found[1], headers.target, headers.fault)
        # The first pass reports it where it comes to it.
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
            # A file that cannot be sought in is opened again; there may be thousands of links.
            self._file.close()
            self._file, self._at = self._again(), 0
        _pass_over(self._file, begin - self._at)
        content = _whole(self._file, size)
        self._at = begin + size
        return content


def _pass_over(file: IO[bytes], gap: int) -> None:
    """Go on in a file without reading, or by reading where it cannot be sought in."""
    try:
        if file.seekable():
            file.seek(gap, 1)
            return
    # Python's files and fsspec's refuse in several ways; one that has failed has an error with a number.
    except (ValueError, OverflowError, OSError) as error:
        if gap < 0 or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
            raise
    while gap > 0:
        piece = _reading(file, min(gap, _PIECE_BYTES))
        if not piece:
            raise DamageError("it ends here")
        gap -= len(piece)


def _whole(file: IO[bytes], size: int) -> bytes:
    content = _reading(file, size)
    if len(content) < size:
        raise DamageError("it ends here")
    return content


def _reading(file: IO[bytes], size: int) -> bytes:
    try:
        return file.read(size)
    except (OverflowError, MemoryError) as error:
        raise DamageError(f"a file of {size} bytes, for which there is no memory") from error
    except CompressionError as error:
        raise DamageError(str(error)) from error


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
