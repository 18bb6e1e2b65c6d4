"""Compressed files as plain ones, in bounded memory and time, whoever built them. Knows no tar and no Spark."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from importlib import import_module
from typing import IO, Any, Protocol

from fsspec.compression import compr

from spark_aesthetic.errors import MissingDependencyError

# How compressed files begin, in fsspec's names.
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}

# xz takes as much memory as its header asks for; "xz -9" asks for 65 MiB.
_XZ_MEMORY = 256 << 20

# A file that gives more than this, at more than this ratio, was built to do so. Images compress by a few per cent, text
# by less than twenty times; zeros in gzip by a thousand times, in the others by more than ten thousand.
_BOMB_BYTES, _BOMB_RATIO = 4 << 30, 100

_BUFFER = 1 << 20


class CompressionError(Exception):
    """A compressed file that is damaged, or gives too much for its size."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def plain(raw: Any, url: str) -> IO[bytes]:
    """A file as it is before compression; it cannot be sought in if it was compressed.

    Raises:
        MissingDependencyError: It is compressed in a way that needs another package.
    """
    # Headers are small, and each read of fsspec's own files costs as much as one.
    file = io.BufferedReader(raw, _BUFFER)
    begin = file.peek(8)
    for magic, name in _COMPRESSIONS.items():
        if begin.startswith(magic):
            if name not in compr:
                raise MissingDependencyError(
                    f"shard {url}: expected the package for files compressed by {name}, found none on this machine; "
                    "pip install zstandard"
                )
            return io.BufferedReader(_Decompressed(file, name), _BUFFER)
    return file


class _Decompressed(io.RawIOBase):
    """Reads forward only; turns each decompressor's own errors into one."""

    def __init__(self, file: io.BufferedReader, name: str) -> None:
        self._file = file
        self._stream, self._damage = _opened(file, name)
        self._given = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill as much of a buffer as one read gives.

        Raises:
            CompressionError: The file is damaged, or gives too much for its size.
        """
        try:
            content = self._stream.read(len(buffer))
        except self._damage as error:
            # bz2 has no class of its own: a file system's OSError has a number.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise CompressionError(str(error) or type(error).__name__) from error
        self._given += len(content)
        if self._given > _BOMB_BYTES and self._given > _BOMB_RATIO * self._file.tell():
            raise CompressionError(f"it is {self._given} bytes so far, more than {_BOMB_RATIO} times its size")
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close the compressed file too."""
        self._file.close()
        super().close()


def _opened(file: io.BufferedReader, name: str) -> tuple[_Stream, tuple[type[Exception], ...]]:
    """A stream, and the errors by which it reports damage."""
    if name == "gzip":
        return gzip.GzipFile(fileobj=file, mode="rb"), (EOFError, zlib.error, gzip.BadGzipFile)
    if name == "bz2":
        return bz2.BZ2File(file), (EOFError, OSError)
    if name == "xz":
        return _Xz(file), (EOFError, lzma.LZMAError)
    zstandard = import_module("zstandard")
    # Files that were concatenated have several frames.
    stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return stream, (EOFError, zstandard.ZstdError)


class _Xz:
    """xz streams one after another, as lzma.LZMAFile reads them, which has no limit of memory."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._stream = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def read(self, size: int, /) -> bytes:
        while True:
            if self._stream.eof:
                # Zeros may pad a stream.
                rest = self._stream.unused_data.lstrip(b"\0")
                while not rest and (piece := self._file.read(_BUFFER)):
                    rest = piece.lstrip(b"\0")
                if not rest:
                    return b""
                self._stream = self._new()
            else:
                rest = self._file.read(_BUFFER) if self._stream.needs_input else b""
                if self._stream.needs_input and not rest:
                    raise EOFError("it ends within a compressed stream")
            if content := self._stream.decompress(rest, size):
                return content
