"""WebDataset shards: tar files of samples, each some files with one key. Knows no Spark.

A file's key is its path up to the first dot of its last part, and its extension what follows that dot, in lower case.
Files that come after one another with one key are a sample.
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

# Of what is text, so a column of strings; all else is bytes.
TEXTS = ("txt", "text", "caption", "json", "jsonl", "cls", "transcript", "url")

# How the fault of a sample begins whose files do not follow one another.
APART = "sample: its files are apart in the shard"

# The webdataset library takes these for notes about the shard.
_META = re.compile(r"__[^/]*__($|/)")

# Extensions that are columns of the reader, or may be in a later release.
_RESERVED = re.compile(r"__.*__", re.DOTALL)

# Files of one key, and characters of an extension: a reader remembers them.
_MAX_FILES, _MAX_EXTENSION = 1000, 255

# The files of one sample may have so many bytes together: Spark has no row of more than 2 GiB, and bytes that are not
# UTF-8 take three times their place in a string.
MAX_SAMPLE_BYTES = 512 << 20

_TOO_MUCH = f"sample: its files are larger than {MAX_SAMPLE_BYTES >> 20} MiB"

# Extensions that a fault names, files that a warning names, and characters of a name.
_NAMED, _NAMED_FILES, _SHOWN = 5, 3, 100

# Letters that no name has: control characters, line separators, marks that turn text around, halves of characters.
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"

# A key that readers find again, and that names no place outside of a folder, as Python's and Java's regular expressions
# both take it; KEY_RULE has it in words. Also no __…__ first. The last group is the end of the text: a $ also stands
# before a line feed at the end.
WHOLE_KEY = (
    r"^(?![\s\S]{1001})(?!__[^/]*__/)(?![A-Za-z]:)"
    rf"(?:(?![. ]+/)[^/\\{_CONTROLS}]+/)*(?! +(?![\s\S]))[^/.\\{_CONTROLS}]+(?![\s\S])"
)

KEY_RULE = (
    "without a dot, at which readers cut it, behind the last slash, without control characters, line breaks, marks "
    "that turn text around, backslashes or a drive such as C:, of at most 1000 characters, and with no part that is "
    "empty, or of dots and blanks alone, between slashes"
)

# The extension of a file that is written.
WHOLE_EXTENSION = re.compile(rf"[^/\\{_CONTROLS}]{{1,{_MAX_EXTENSION}}}(?![\s\S])")


class ShardError(TableError):
    """A shard that is damaged, with the place."""


@dataclass(frozen=True)
class Sample:
    """Files of one key.

    Attributes:
        key: Of all of them.
        files: Bytes by extension, those that were asked for.
        extensions: Of all of its files.
        fault: Why it is not all of a sample, or None: such as a link out of the shard, a file that is too large, or
            files that are apart.
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
    return extension.lower().rpartition(".")[2] in TEXTS


def split(name: str) -> tuple[str, str]:
    """A file's key and extension.

    Examples:
        >>> split("a.b/000012.seg.PNG")
        ('a.b/000012', 'seg.png')
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


class _Found:
    """The files of a sample that have come so far."""

    __slots__ = ("extensions", "faults", "files", "key", "size")

    def __init__(self, key: str) -> None:
        self.key = key
        self.files: dict[str, bytes] = {}
        # In their order.
        self.extensions: dict[str, None] = {}
        self.faults: dict[str, None] = {}
        self.size = 0

    @property
    def is_any(self) -> bool:
        """Whether there is something to tell of it."""
        return bool(self.extensions or self.faults)

    def has_room(self, extension: str) -> bool:
        """Whether a file of this name may be one of the sample's; a fault says why not."""
        # Hardly any begins so, and this is asked of each file.
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
        """Read a file, or note why not."""
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
            # A link has no size of its own.
            if self.size > MAX_SAMPLE_BYTES:
                self.size -= len(content)
                self.faults[_TOO_MUCH] = None
            else:
                self.files[extension] = content


class _Seen:
    """The extensions of each key's samples so far, in memory that grows by some bytes a sample."""

    def __init__(self) -> None:
        # Keys by their hashes, and equal tuples once, for a shard has many keys and few of these.
        self._extensions: dict[int, tuple[str, ...]] = {}
        self._same: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._last = ""

    def sample(self, found: _Found) -> Sample:
        """What has been found, and whether it continues an earlier sample of the key."""
        number, own = hash(found.key), tuple(found.extensions)
        earlier = self._extensions.get(number, ())
        continues = bool(earlier and own) and set(own).isdisjoint(earlier)
        # The same files again are a second sample of the key; others, after another key, are a part of one. It has a
        # file that is there already, so it is not known which.
        is_part = bool(earlier and own) and set(own) != set(earlier) and found.key != self._last
        self._last = found.key
        if continues or is_part:
            found.faults[f"{APART}, {_listed(earlier)} before {_listed(own)}"] = None
        if own and not continues:
            self._extensions[number] = self._same.setdefault(own, own)
        elif continues:
            # Not kept for others, who will hardly have the same.
            if len(earlier) + len(own) <= _MAX_FILES:
                self._extensions[number] = earlier + own
            else:
                found.faults[f"sample: more than {_MAX_FILES} files"] = None
        return Sample(found.key, found.files, own, "; ".join(found.faults) or None, continues)


class _LeftOut:
    """Files of a shard that are of no sample, because their names have no extension."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []

    def add(self, name: str) -> None:
        """Count a file, unless its name says that it is a note about the shard or about another file."""
        last = name.rpartition("/")[2]
        if not last or last.startswith(".") or _META.match(name) or _RESERVED.fullmatch(last):
            return
        self.count += 1
        if len(self.names) < _NAMED_FILES:
            self.names.append(visible(name[:_SHOWN]))

    def warn(self, url: str) -> None:
        """Log how many there are, if there are any."""
        if self.count:
            more = ", …" if self.count > len(self.names) else ""
            _log.warning(
                "shard %s: %d files without an extension are left out: %s%s; give them one, such as .jpg",
                visible(url), self.count, ", ".join(self.names), more,
            )  # fmt: skip


def _listed(extensions: tuple[str, ...]) -> str:
    more = ", …" if len(extensions) > _NAMED else ""
    return ", ".join(name[:_SHOWN] for name in extensions[:_NAMED]) + more


def read(url: str, wanted: Callable[[str], bool], max_member_bytes: int = tar.MAX_MEMBER_BYTES) -> Iterator[Sample]:
    """The samples of a shard, one at a time; bytes of files that are not wanted are passed over.

    Files of one key that do not follow one another are two samples, of which the second `continues` the first and has
    a `fault`; one that has some of the first one's files and others has the fault alone. To find that out takes a
    number for each of a shard's samples, and no bytes. Memory is bounded by `MAX_SAMPLE_BYTES`, whatever is in the
    shard.

    Args:
        url: A path, or an address that fsspec knows; it may be compressed.
        wanted: Told an extension, whether its files are asked for.
        max_member_bytes: A larger file is passed over, and its sample has a fault.

    Raises:
        ShardError: The shard is damaged; samples that came before the damage have been given by then.
        MissingDependencyError: It is compressed in a way that needs another package.
        OSError: It cannot be read.
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
                # A link may lead to a folder.
                if not extension and not reader.target:
                    left_out.add(name)
                if not extension or of.endswith("/") or not of or _META.match(name):
                    continue
                # Two of one extension are two samples, so that neither is lost.
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
    """Check that readers take files of an extension, which is that of a column, for those of a sample.

    Raises:
        TableError: They do not.
    """
    if not WHOLE_EXTENSION.match(extension) or _RESERVED.fullmatch(extension):
        raise TableError(
            f"webdataset: {called}: expected a name that readers take for a sample's, of at most {_MAX_EXTENSION} "
            f"characters, found {extension[:_SHOWN]!r} for its extension: a slash, a backslash, a control character, "
            "nothing, or __…__ around it, as readers' own columns have; rename the column"
        )


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
                f"webdataset: key {key[:_SHOWN]!r}: expected one {KEY_RULE}; take another column, "
                "replace(key, '.', '_'), or none, so that keys are counted"
            )
        if key in self._keys:
            raise TableError(
                f"webdataset: key {key!r}: expected each key once, found it twice in a shard, where readers take both "
                "for one sample; take another column, or none, so that keys are counted"
            )
        for extension in files:
            check_extension(extension, f"file {f'{key}.{extension}'[:_SHOWN]!r}")
            if _META.match(f"{key}.{extension}"):
                raise TableError(
                    f"webdataset: file '{key}.{extension}': expected a name that readers take for a sample's, found "
                    "__…__ around what is first, as of notes about the shard; rename the column, or take other keys"
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

    def abandon(self) -> None:
        """Close the file without its end, so that no reader takes what is there for a whole shard."""
        with suppress(Exception):
            self._file.close()
