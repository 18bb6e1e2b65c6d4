"""WebDataset shards: tar files of samples, each some files with one key. Knows no Spark.

A file's key is its path up to the first dot of its last part, and its extension what follows that dot, in lower case.
Files that come after one another with one key are a sample.
"""

from __future__ import annotations

import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from gzip import BadGzipFile
from importlib import import_module
from importlib.util import find_spec
from typing import IO, Any

from fsspec.compression import compr

from spark_aesthetic.datasources import tar
from spark_aesthetic.datasources.places import absolute, find, locate, tars
from spark_aesthetic.errors import MissingDependencyError, TableError

__all__ = ["Sample", "ShardError", "ShardWriter", "absolute", "find", "is_text", "locate", "read", "split", "tars"]

# Of what is text, so a column of strings; all else is bytes.
_TEXT = frozenset({"txt", "text", "caption", "json", "jsonl", "cls", "transcript", "url"})

# What a shard gives that was cut off, overwritten or never one. An error of the file system is none of these: Spark
# runs the task again for it, and it must not be reported as the shard's.
_DAMAGE = (tar.DamageError, EOFError, zlib.error, BadGzipFile, lzma.LZMAError)

# Of bz2 an OSError without a number, of zstd one of a package that may not be there.
_BZ2_DAMAGE, _ZSTD_DAMAGE = "Invalid data stream", "ZstdError"

# How compressed files begin, in fsspec's names.
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}

# How the fault of a sample begins whose files do not follow one another.
APART = "sample: its files are apart in the shard"

# The webdataset library takes these for notes about the shard.
_META = re.compile(r"__[^/]*__($|/)")


# A key that readers find again, as Python's and Java's regular expressions both take it: no control characters, no
# empty part, no "." or ".." between slashes, no dot in the last part, and no __…__ first. The last group is the end of
# the text: a $ also stands before a line feed at the end.
WHOLE_KEY = r"^(?!__[^/]*__/)(?:(?!\.{1,2}/)[^/\x00-\x1f\x7f]+/)*[^/.\x00-\x1f\x7f]+(?![\s\S])"

KEY_RULE = (
    "without a dot, at which readers cut it, without control characters, and with no empty part, '.' or '..' between "
    "slashes"
)


class ShardError(TableError):
    """A shard that is damaged, with the place."""


@dataclass(frozen=True)
class Sample:
    """Files of one key.

    Attributes:
        key: Of all of them.
        files: Bytes by extension, those that were asked for.
        extensions: Of all of its files.
        fault: Why it is not all of a sample, or None. A link leads out of the shard, or its files are apart.
        continues: It has the files that an earlier sample of the same key lacks, because they are apart.
    """

    key: str
    files: dict[str, bytes]
    extensions: tuple[str, ...]
    fault: str | None = None
    continues: bool = False


def is_text(extension: str) -> bool:
    """Whether files of an extension hold text, which its last part says.

    Examples:
        >>> is_text("json"), is_text("en.txt"), is_text("seg.png")
        (True, True, False)
    """
    return extension.lower().rpartition(".")[2] in _TEXT


def split(name: str) -> tuple[str, str]:
    """A file's key and extension.

    Examples:
        >>> split("a.b/000012.seg.PNG")
        ('a.b/000012', 'seg.png')
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


def read(url: str, wanted: Callable[[str], bool]) -> Iterator[Sample]:
    """The samples of a shard, one at a time; bytes of files that are not wanted are passed over.

    Files of one key that do not follow one another are two samples, of which the second `continues` the first and has
    a `fault`. To find that out takes the names of a shard's samples, and no bytes.

    Args:
        url: A path, or an address that fsspec knows; it may be compressed.
        wanted: Told an extension, whether its files are asked for.

    Raises:
        ShardError: The shard is damaged; samples that came before the damage have been given by then.
        MissingDependencyError: It is compressed in a way that needs another package.
        OSError: It cannot be read.
    """
    key, files, extensions, faults = "", dict[str, bytes](), list[str](), list[str]()
    # The extensions of each key's last sample; equal ones are one tuple, for a shard has many keys and few of these.
    seen, same = dict[str, tuple[str, ...]](), dict[tuple[str, ...], tuple[str, ...]]()

    def sample() -> Sample:
        earlier = seen.get(key, ())
        apart = bool(earlier) and not set(earlier) & set(extensions)
        found = tuple(extensions)
        seen[key] = same.setdefault(*[earlier + found if apart else found] * 2)
        if apart:
            faults.append(f"{APART}, {', '.join(earlier)} before {', '.join(found)}")
        return Sample(key, files, found, "; ".join(faults) or None, apart)

    with ExitStack() as opened:
        system, place = locate(url)

        def again() -> IO[bytes]:
            return _plain(opened.enter_context(system.open(place, "rb")), url)

        reader = tar.TarReader(again(), again)
        try:
            for name, _ in reader:
                of, extension = split(name)
                if not extension or of.endswith("/") or not of or _META.match(name):
                    continue
                # Two of one extension are two samples, so that neither is lost.
                if extensions and (of != key or extension in extensions):
                    yield sample()
                    files, extensions, faults = {}, [], []
                key = of
                extensions.append(extension)
                if wanted(extension):
                    try:
                        files[extension] = reader.content()
                    except tar.LinkError as error:
                        if reader.leads_to_folder():
                            extensions.pop()
                        else:
                            faults.append(f"sample: {extension} is {error}")
        except Exception as error:
            if not _is_damage(error):
                raise
            if reader.ended and extensions:
                yield sample()
            raise ShardError(
                f"shard {url}: expected a whole tar file, found damage at byte {reader.place}, after the sample "
                f"{key!r}: {error or type(error).__name__}; fetch it again, or read with option onDamage=report"
            ) from error
    if extensions:
        yield sample()


def _is_damage(error: Exception) -> bool:
    return isinstance(error, _DAMAGE) or str(error) == _BZ2_DAMAGE or type(error).__name__ == _ZSTD_DAMAGE


def _plain(raw: Any, url: str) -> IO[bytes]:
    # Headers are small, and each read of fsspec's own files costs as much as one.
    file = io.BufferedReader(raw, 1 << 20)
    begin = file.peek(8)
    for magic, name in _COMPRESSIONS.items():
        if begin.startswith(magic):
            if name not in compr:
                raise MissingDependencyError(
                    f"shard {url}: expected the package for files compressed by {name}, found none on this machine; "
                    "pip install zstandard"
                )
            return io.BufferedReader(_opened(name, file), 1 << 20)
    return file


def _opened(name: str, file: IO[bytes]) -> Any:
    if name == "zstd" and find_spec("zstandard") is not None:
        # fsspec ends with the first frame, and files that were concatenated have several.
        return import_module("zstandard").ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return compr[name](file, mode="rb")


class ShardWriter:
    """A shard that is being written, file after file, none of it kept in memory.

    Args:
        file: Open for writing; it is closed by `close`.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = 0
        self._keys: set[str] = set()

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self._keys)

    def write(self, key: str, files: Mapping[str, tar.Buffer]) -> None:
        """Append a sample, its bytes as they are; the same input gives the same shard to the byte.

        Raises:
            TableError: Readers would not find the key, or one of its files, again.
        """
        if not re.match(WHOLE_KEY, key):
            raise TableError(
                f"webdataset: key {key!r}: expected one {KEY_RULE}; take another column, replace(key, '.', '_'), or "
                "none, so that keys are counted"
            )
        if key in self._keys:
            raise TableError(
                f"webdataset: key {key!r}: expected each key once, found it twice in a shard, where readers take both "
                "for one sample; take another column, or none, so that keys are counted"
            )
        for extension in files:
            if "/" in extension or _META.match(f"{key}.{extension}"):
                raise TableError(
                    f"webdataset: file '{key}.{extension}': expected a name that readers take for a sample's, found a "
                    "slash in the extension, or __…__ around what is first, as of notes about the shard; rename the "
                    "column, or take other keys"
                )
        self._keys.add(key)
        for extension, content in files.items():
            for part in tar.entry(f"{key}.{extension}", content):
                self._file.write(part)
                self._size += len(part)

    def close(self) -> None:
        """Write the end of the tar file, and close it."""
        self._file.write(tar.end(self._size))
        self._file.close()
