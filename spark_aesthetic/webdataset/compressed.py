"""Decompress untrusted files in bounded memory and time. This module is independent of tar and Spark."""

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

# Magic bytes of compressed files, and fsspec's names for the formats.
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}

# An xz header states the memory that decompression needs; "xz -9" states 65 MiB.
_XZ_MEMORY = 256 << 20

# A file above both this size and this ratio is a decompression bomb. Images compress by a few per cent and text by less
# than 20 times. Zeros compress by 1,000 times in gzip and by more than 10,000 times in the remaining formats.
_BOMB_BYTES, _BOMB_RATIO = 4 << 30, 100

_BUFFER = 1 << 20


class CompressionError(Exception):
    """A compressed file is damaged or expands too much."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def plain(raw: Any, url: str) -> IO[bytes]:
    """Return the decompressed file; it is not seekable if it was compressed.

    Raises:
        MissingDependencyError: The compression format needs a package that is not installed.
    """
    # Tar headers are small, and each read of an fsspec file is expensive, so reads are buffered.
    file = io.BufferedReader(raw, _BUFFER)
    begin = file.peek(8)
    for magic, name in _COMPRESSIONS.items():
        if begin.startswith(magic):
            if name not in compr:
                raise MissingDependencyError(
                    f"shard {url}: expected the package for files compressed by {name}, found none on this machine. "
                    "Run pip install zstandard."
                )
            return io.BufferedReader(_Decompressed(file, name), _BUFFER)
    return file


class _Decompressed(io.RawIOBase):
    """A forward-only stream that raises `CompressionError` for every decompressor's errors."""

    def __init__(self, file: io.BufferedReader, name: str) -> None:
        self._file = file
        self._stream, self._damage = _opened(file, name)
        self._given = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer with the bytes of one read.

        Raises:
            CompressionError: The file is damaged or expands too much.
        """
        try:
            content = self._stream.read(len(buffer))
        except self._damage as error:
            # bz2 raises a plain OSError for damage. An OSError of the file system has an errno.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise CompressionError(str(error) or type(error).__name__) from error
        self._given += len(content)
        if self._given > _BOMB_BYTES and self._given > _BOMB_RATIO * self._file.tell():
            raise CompressionError(f"it has {self._given} bytes, more than {_BOMB_RATIO} times the compressed size")
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close the stream and the compressed file."""
        self._file.close()
        super().close()


def _opened(file: io.BufferedReader, name: str) -> tuple[_Stream, tuple[type[Exception], ...]]:
    """Return a decompressing stream and the exceptions that it raises for damage."""
    if name == "gzip":
        return gzip.GzipFile(fileobj=file, mode="rb"), (EOFError, zlib.error, gzip.BadGzipFile)
    if name == "bz2":
        return bz2.BZ2File(file), (EOFError, OSError)
    if name == "xz":
        return _Xz(file), (EOFError, lzma.LZMAError)
    zstandard = import_module("zstandard")
    # Concatenated files have several frames.
    stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return stream, (EOFError, zstandard.ZstdError)


class _Xz:
    """Reads concatenated xz streams, like lzma.LZMAFile, but with a memory limit."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._stream = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def read(self, size: int, /) -> bytes:
        while True:
            if self._stream.eof:
                # A stream may be padded with zeros.
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
