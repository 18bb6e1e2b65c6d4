"""WebDataset shards: tar files of samples. This module is independent of Spark.

A file's key is its path up to the first dot after the last slash. Its extension is the rest after that dot, in lower
case. Consecutive files with the same key are one sample.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO

from spark_aesthetic.errors import TableError
from spark_aesthetic.visible import visible
from spark_aesthetic.webdataset import tar
from spark_aesthetic.webdataset.compressed import plain
from spark_aesthetic.webdataset.places import absolute, find, locate, tars
from spark_aesthetic.webdataset.tar_headers import DamageError

__all__ = ["Sample", "ShardError", "ShardWriter", "absolute", "find", "is_text", "locate", "read", "split", "tars"]

_log = logging.getLogger(__name__)

# Extensions of text files, which become string columns. All other files become binary columns.
TEXTS = ("txt", "text", "caption", "json", "jsonl", "cls", "transcript", "url")

# This text is in the fault of a sample if its files are not consecutive in the shard.
APART = "sample: its files are apart in the shard"

# The webdataset library treats these files as metadata of the shard.
_META = re.compile(r"__[^/]*__($|/)")

# Extensions that are reserved for the reader's columns, now or in a later release.
_RESERVED = re.compile(r"__.*__", re.DOTALL)

# Files per key and characters per extension. The reader keeps these in memory, so they are bounded.
_MAX_FILES, _MAX_EXTENSION = 1000, 255

# Maximum total size of a sample's files. A Spark row is limited to 2 GiB, and bytes that are not UTF-8 take three times
# their size in a string.
MAX_SAMPLE_BYTES = 512 << 20

_TOO_MUCH = f"sample: its files are larger than {MAX_SAMPLE_BYTES >> 20} MiB"

# Maximum number of extensions in a fault, of files in a warning, and of characters of a name.
_NAMED, _NAMED_FILES, _SHOWN = 5, 3, 100

# Characters that names must not contain: control characters, line separators, bidirectional marks and surrogates.
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"

# A valid key: readers recover it, and it does not lead out of a folder. KEY_RULE describes it. The pattern also
# excludes a leading __…__ folder. It works in Python and Java. It ends in a negative lookahead because $ also matches
# before a final line feed.
WHOLE_KEY = (
    r"^(?![\s\S]{1001})(?!__[^/]*__/)(?![A-Za-z]:)"
    rf"(?:(?![. ]+/)[^/\\{_CONTROLS}]+/)*(?! +(?![\s\S]))[^/.\\{_CONTROLS}]+(?![\s\S])"
)

KEY_RULE = (
    "without a dot after the last slash (readers end the key there), without control characters, line breaks, "
    "bidirectional marks, backslashes or a drive such as C:, of at most 1000 characters, and without an empty part "
    "or a part of only dots and spaces between slashes"
)

# A valid extension for a file that is written.
WHOLE_EXTENSION = re.compile(rf"[^/\\{_CONTROLS}]{{1,{_MAX_EXTENSION}}}(?![\s\S])")


class ShardError(TableError):
    """A shard is damaged; the message states the position."""


@dataclass(frozen=True)
class Sample:
    """Files with the same key.

    Attributes:
        key: The key.
        files: The bytes of the requested files, by extension.
        extensions: The extensions of all files.
        fault: Why the sample is incomplete, or None. Examples are a link out of the shard, a file that is too large, or
            files that are not consecutive in the shard.
        continues: Whether these files complete an earlier sample with the same key, which was not consecutive.
    """

    key: str
    files: dict[str, bytes]
    extensions: tuple[str, ...]
    fault: str | None = None
    continues: bool = False


def is_text(extension: str) -> bool:
    """Whether files with an extension contain text, judged by its last part.

    Examples:
        >>> is_text("json"), is_text("en.txt"), is_text("seg.png")
        (True, True, False)
    """
    return extension.lower().rpartition(".")[2] in TEXTS


def split(name: str) -> tuple[str, str]:
    """Split a file name into key and extension.

    Examples:
        >>> split("a.b/000012.seg.PNG")
        ('a.b/000012', 'seg.png')
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


class _Found:
    """The files of the current sample so far."""

    __slots__ = ("extensions", "faults", "files", "key", "size")

    def __init__(self, key: str) -> None:
        self.key = key
        self.files: dict[str, bytes] = {}
        # A dictionary is used as an ordered set.
        self.extensions: dict[str, None] = {}
        self.faults: dict[str, None] = {}
        self.size = 0

    @property
    def is_any(self) -> bool:
        """Whether the sample has a file or a fault."""
        return bool(self.extensions or self.faults)

    def has_room(self, extension: str) -> bool:
        """Whether the sample may have a file with this extension. If not, a fault is added."""
        # This runs for each file, and `startswith` is faster than the pattern.
        if extension.startswith("__") and _RESERVED.fullmatch(extension):
            self.faults[f"sample: {extension[:_SHOWN]} is a reserved name"] = None
        elif len(extension) > _MAX_EXTENSION:
            self.faults[f"sample: an extension of more than {_MAX_EXTENSION} characters"] = None
        elif len(self.extensions) == _MAX_FILES:
            self.faults[f"sample: more than {_MAX_FILES} files"] = None
        else:
            return True
        return False

    def take(self, extension: str, size: int, reader: tar.TarReader) -> None:
        """Read a file, or add a fault."""
        if size <= reader.max_bytes and self.size + size > MAX_SAMPLE_BYTES:
            self.faults[_TOO_MUCH] = None
            return
        try:
            content = reader.content()
        except tar.TooLargeError:
            self.faults[f"sample: {extension[:_SHOWN]} is larger than maxMemberBytes"] = None
        except tar.MemberError as error:
            if reader.leads_to_folder():
                del self.extensions[extension]
            else:
                self.faults[f"sample: {extension[:_SHOWN]} is {error}"] = None
        else:
            self.size += len(content)
            # `size` is 0 for a link, so the limit is checked again after reading.
            if self.size > MAX_SAMPLE_BYTES:
                self.size -= len(content)
                self.faults[_TOO_MUCH] = None
            else:
                self.files[extension] = content


class _Seen:
    """The extensions seen so far for each key. Memory grows by a few bytes per sample."""

    def __init__(self) -> None:
        # Keys are stored as hashes, and equal tuples are shared: a shard has many keys and few sets of extensions.
        self._extensions: dict[int, tuple[str, ...]] = {}
        self._same: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._last = ""

    def sample(self, found: _Found) -> Sample:
        """Complete the current sample and decide whether it continues an earlier sample of the key."""
        number, own = hash(found.key), tuple(found.extensions)
        earlier = self._extensions.get(number, ())
        continues = bool(earlier and own) and set(own).isdisjoint(earlier)
        # The same extensions again are a second sample of the key. Different extensions after a different key are a
        # part of a sample. If one of them is already present, it is unknown which sample they belong to.
        is_part = bool(earlier and own) and set(own) != set(earlier) and found.key != self._last
        self._last = found.key
        if continues or is_part:
            found.faults[f"{APART}, {_listed(earlier)} before {_listed(own)}"] = None
        if own and not continues:
            self._extensions[number] = self._same.setdefault(own, own)
        elif continues:
            # This tuple is not shared because hardly any other key has the same one.
            if len(earlier) + len(own) <= _MAX_FILES:
                self._extensions[number] = earlier + own
            else:
                found.faults[f"sample: more than {_MAX_FILES} files"] = None
        return Sample(found.key, found.files, own, "; ".join(found.faults) or None, continues)


class _LeftOut:
    """Files of a shard that belong to no sample because they have no extension."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []

    def add(self, name: str) -> None:
        """Count a file, unless its name marks it as metadata of the shard or of a file."""
        last = name.rpartition("/")[2]
        if not last or last.startswith(".") or _META.match(name) or _RESERVED.fullmatch(last):
            return
        self.count += 1
        if len(self.names) < _NAMED_FILES:
            self.names.append(visible(name[:_SHOWN]))

    def warn(self, url: str) -> None:
        """Log a warning if files were left out."""
        if self.count:
            more = ", …" if self.count > len(self.names) else ""
            _log.warning(
                "shard %s: %d files without an extension are left out: %s%s. Give them an extension, such as .jpg.",
                visible(url), self.count, ", ".join(self.names), more,
            )  # fmt: skip


def _listed(extensions: tuple[str, ...]) -> str:
    more = ", …" if len(extensions) > _NAMED else ""
    return ", ".join(name[:_SHOWN] for name in extensions[:_NAMED]) + more


def read(url: str, wanted: Callable[[str], bool], max_member_bytes: int = tar.MAX_MEMBER_BYTES) -> Iterator[Sample]:
    """Yield the samples of a shard one at a time, skipping the bytes of files that are not wanted.

    If files of one key are not consecutive, they are two samples: the second one `continues` the first and has a
    `fault`. If the second one repeats some extensions and adds new ones, it has only the fault. Detecting this keeps a
    hash per sample, but no bytes. The bytes in memory are bounded by `MAX_SAMPLE_BYTES` for any shard.

    Args:
        url: A path or an fsspec address; the file may be compressed.
        wanted: Returns whether files with an extension are read.
        max_member_bytes: Larger files are skipped, and their sample has a fault.

    Raises:
        ShardError: The shard is damaged. The samples before the damage have already been yielded.
        MissingDependencyError: The compression format needs a package that is not installed.
        OSError: The shard cannot be read.
    """
    found, seen, left_out = _Found(""), _Seen(), _LeftOut()
    with ExitStack() as opened:
        system, place = locate(url)

        def again() -> IO[bytes]:
            return plain(opened.enter_context(system.open(place, "rb")), url)

        reader = tar.TarReader(again(), again, max_member_bytes)
        try:
            for name, size in reader:
                of, extension = split(name)
                # A link without an extension may lead to a folder, so it is not reported.
                if not extension and not reader.target:
                    left_out.add(name)
                if not extension or of.endswith("/") or not of or _META.match(name):
                    continue
                # A repeated extension begins a new sample, so that neither file is lost.
                if of != found.key or extension in found.extensions:
                    if found.is_any:
                        yield seen.sample(found)
                    found = _Found(of)
                if found.has_room(extension):
                    found.extensions[extension] = None
                    if wanted(extension):
                        found.take(extension, size, reader)
        except DamageError as error:
            if reader.ended and found.is_any:
                yield seen.sample(found)
            left_out.warn(url)
            raise ShardError(
                f"shard {url}: expected a whole tar file, found damage at byte {reader.place}, after the sample "
                f"{found.key[:_SHOWN]!r}: {error}; fetch it again, or read with option onDamage=report"
            ) from error
    if found.is_any:
        yield seen.sample(found)
    left_out.warn(url)


def check_extension(extension: str, called: str) -> None:
    """Check that readers accept an extension, which is derived from a column name, as part of a sample.

    Raises:
        TableError: They do not accept it.
    """
    if not WHOLE_EXTENSION.match(extension) or _RESERVED.fullmatch(extension):
        raise TableError(
            f"webdataset: {called}: expected an extension that readers accept, of at most {_MAX_EXTENSION} "
            f"characters, found {extension[:_SHOWN]!r}. Extensions must not be empty, contain a slash, a backslash or "
            "a control character, or be reserved names such as __key__. Rename the column."
        )


class ShardWriter:
    """Writes a shard file by file without keeping it in memory.

    Args:
        file: A file open for writing; `close` closes it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = 0
        self._keys: set[str] = set()

    @property
    def samples(self) -> int:
        """The number of samples written."""
        return len(self._keys)

    def write(self, key: str, files: Mapping[str, tar.Buffer]) -> None:
        """Append a sample with unchanged bytes. The same input gives a byte-identical shard.

        Raises:
            TableError: Readers could not recover the key or one of its files.
        """
        if not re.match(WHOLE_KEY, key):
            raise TableError(
                f"webdataset: key {key[:_SHOWN]!r}: expected one {KEY_RULE}. Choose a different column, "
                "use replace(key, '.', '_'), or write without a key column to number the samples."
            )
        if key in self._keys:
            raise TableError(
                f"webdataset: key {key!r}: expected each key once, found it twice in a shard, where readers merge "
                "both into one sample. Choose a different column, or write without one to number the samples."
            )
        for extension in files:
            check_extension(extension, f"file {f'{key}.{extension}'[:_SHOWN]!r}")
            if _META.match(f"{key}.{extension}"):
                raise TableError(
                    f"webdataset: file '{key}.{extension}': expected a file name that readers accept, found a "
                    "leading __…__, which marks metadata of the shard. Rename the column, or choose different keys."
                )
        self._keys.add(key)
        for extension, content in files.items():
            for part in tar.entry(f"{key}.{extension}", content):
                self._file.write(part)
                self._size += len(part)

    def close(self) -> None:
        """Write the end of the tar file and close it."""
        self._file.write(tar.end(self._size))
        self._file.close()

    def abandon(self) -> None:
        """Close the file without an end mark, so that no reader mistakes it for a complete shard."""
        with suppress(Exception):
            self._file.close()
