"""WebDataset shards: tar files of samples, each some files with one key. Knows no Spark.

A file's key is its path up to the first dot of its last part, and its extension what follows that dot, in lower case.
Files that come after one another with one key are a sample.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from braceexpand import braceexpand

from spark_aesthetic.errors import TableError
from spark_aesthetic.files import mounted

# Of what is text, so a column of strings; all else is bytes.
TEXT = frozenset({"txt", "text", "caption", "json", "jsonl", "cls", "transcript", "url"})

# What a tar file is that was cut off, overwritten or never one, as the libraries below say it.
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, OSError, ValueError)


class ShardError(TableError):
    """A shard that is damaged or cannot be read, with the place."""


@dataclass(frozen=True)
class Sample:
    """Files of one key.

    Attributes:
        key: Of all of them.
        files: Bytes by extension, those that were asked for.
        extensions: Of all of its files.
    """

    key: str
    files: dict[str, bytes]
    extensions: tuple[str, ...]


def find(path: str) -> list[str]:
    """The shards that a path names: with ranges as {00000..00099}, alternatives as {a,b}, or a pattern with * and ?.

    A folder is all of its .tar files.

    Raises:
        TableError: There are none, or one that is named is not there.
    """
    found: list[str] = []
    for url in braceexpand(path):
        system, place = fsspec.core.url_to_fs(mounted(url))
        if any(letter in place for letter in "*?["):
            places = sorted(system.glob(place))
        elif system.isdir(place):
            places = sorted(system.glob(f"{place.rstrip('/')}/*.tar"))
        else:
            if not system.exists(place):
                raise TableError(f"webdataset: expected the shard {url}, found nothing there; correct the range")
            places = [place]
        found += [system.unstrip_protocol(at) if "://" in url else at for at in places]
    if not found:
        raise TableError(f"webdataset: expected shards (.tar) at {path!r}, found none; check the path or the pattern")
    return found


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

    Args:
        url: A path, or an address that fsspec knows.
        wanted: Told an extension, whether its files are asked for.

    Raises:
        ShardError: The shard is damaged; samples that came before the damage have been given by then.
    """
    key, files, extensions, place = "", dict[str, bytes](), list[str](), 0
    try:
        with fsspec.open(mounted(url), "rb").open() as file, tarfile.open(fileobj=file, mode="r:*") as tar:
            for member in tar:
                place = member.offset
                if not member.isfile():
                    continue
                of, extension = split(member.name)
                if not extension or Path(member.name).name.startswith("."):
                    continue
                if of != key and extensions:
                    yield Sample(key, files, tuple(extensions))
                    files, extensions = {}, []
                key = of
                extensions.append(extension)
                if wanted(extension):
                    content = tar.extractfile(member)
                    assert content is not None, "a regular file has content"
                    files[extension] = content.read()
                # tarfile keeps a record of each member, a gigabyte of them in a shard of millions.
                tar.members = []  # type: ignore[attr-defined]  # an attribute that its documentation has
            place = tar.offset
            _check_end(tar.fileobj, tar.offset)
    except _DAMAGE as error:
        raise ShardError(
            f"shard {url}: expected a whole tar file, found damage at byte {place}, after the sample "
            f"{key!r}: {error or type(error).__name__}; fetch it again, or read with option onDamage=report"
        ) from error
    if extensions:
        yield Sample(key, files, tuple(extensions))


def _check_end(file: Any, offset: int) -> None:
    # tarfile takes a header that is cut off, or is none, for the end.
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the end of a tar file is missing")


class ShardWriter:
    """A shard that is being written, file after file, none of it kept in memory.

    Args:
        file: Open for writing; it is closed by `close`.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._tar = tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (see close)
        self.samples = 0

    def write(self, key: str, files: Mapping[str, bytes]) -> None:
        """Append a sample, its bytes as they are; the same input gives the same shard to the byte."""
        for extension, content in files.items():
            # Neither time nor owner, which would differ between two writes.
            entry = tarfile.TarInfo(f"{key}.{extension}")
            entry.size, entry.mode = len(content), 0o644
            self._tar.addfile(entry, io.BytesIO(content))
        # As in reading.
        self._tar.members = []  # type: ignore[attr-defined]
        self.samples += 1

    def close(self) -> None:
        """Write the end of the tar file, and close it."""
        self._tar.close()
        self._file.close()
