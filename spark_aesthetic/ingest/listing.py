"""Count and name the files of a local folder that Spark's listing silently leaves out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import translate
from glob import glob as matching

from braceexpand import braceexpand

from spark_aesthetic.ingest.links import is_hidden, leads_out
from spark_aesthetic.visible import visible

HIDDEN = "its name, or that of its folder, begins with _ or ."
EMPTY = "empty"
NOT_UTF8 = "its name is not UTF-8"
OTHER_CASE = "matches --glob in another case only"
NO_FILE = "no file, such as a link that leads nowhere"
CLOSED = "a folder without access"
GONE = "removed while the folder was listed"
LINK = "a link that leads out of the folder: name what it leads to"
UNLISTED = "not listed by Spark"
LOCALE = "Java cannot read its name: start Spark with LC_ALL=C.UTF-8"
OTHER_SHARD = "a shard without .tar at its end: name it, or take a pattern"

# Number of files that are named for each reason.
_EXAMPLES = 3


@dataclass
class PassedOver:
    """Files that a source has and does not read, by reason.

    Attributes:
        counts: The number of files.
        examples: The first few files.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """Count a file."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        named = self.examples.setdefault(reason, [])
        if len(named) < _EXAMPLES:
            # A name may contain terminal escapes, and a name that is not UTF-8 cannot be logged.
            named.append(visible(path))

    def __str__(self) -> str:
        """Format the counts and examples as one line."""
        return "; ".join(
            f"{count} ({reason}): {', '.join(self.examples[reason])}{', …' if count > _EXAMPLES else ''}"
            for reason, count in sorted(self.counts.items())
        )


def compare(path: str, glob: str | None, listed: Iterable[str], count: int) -> PassedOver:
    """Compare a local folder with Spark's listing.

    Args:
        path: The folder, or a pattern of folders.
        glob: The pattern that file names must match, in the syntax of Spark's pathGlobFilter.
        listed: The paths that Spark has listed. They are read only if fewer were listed than expected.
        count: The number of these paths.
    """
    passed_over = PassedOver()
    roots, folder = roots_of(path)
    expected = sum(1 for _ in _expected(roots, folder, glob, passed_over))
    if expected > count:
        # A set of hashes takes a tenth of the memory of a set of paths.
        known = {hash(name.removeprefix("file:")) for name in listed}
        for name in _expected(roots, folder, glob, PassedOver()):
            if hash(name) not in known:
                passed_over.add(UNLISTED if name.isascii() else LOCALE, name)
    return passed_over


def files_below(path: str, glob: str | None) -> Iterator[str]:
    """Yield the files that Spark would list if it did not follow links to folders; see `compare`."""
    return _expected(*roots_of(path), glob, PassedOver())


def roots_of(path: str) -> tuple[list[str], str]:
    """Return the folder at a path, or the folders that match it, and the folder that contains them all."""
    if os.path.exists(path):  # noqa: PTH110 (a name that is not UTF-8 is no Path)
        return [path], path
    return _roots(path), re.split(r"[*?\[{\\]", path, maxsplit=1)[0].rpartition("/")[0] or "/"


def _roots(pattern: str) -> list[str]:
    patterns = (part.replace("[^", "[!") for part in _alternatives(pattern))
    return sorted({found for part in patterns for found in matching(part)})  # noqa: PTH207 (Path.glob takes no root)


def _alternatives(pattern: str) -> list[str]:
    try:
        return list(braceexpand(pattern))
    # The braces are unbalanced.
    except ValueError:
        return [pattern]


def _expected(roots: list[str], folder: str, glob: str | None, passed_over: PassedOver) -> Iterator[str]:
    """Yield the files that Spark should list, and count the remaining files in `passed_over`."""
    inside = os.path.realpath(folder)
    alike, exact = (None, None) if glob is None else (_regex(glob, re.IGNORECASE), _regex(glob))
    seen: set[tuple[int, int]] = set()
    for root in roots:
        for entry, hidden in _files(root, inside, passed_over, seen):
            name = os.path.basename(entry)  # noqa: PTH119 (a name that is not UTF-8 is no Path)
            if alike is not None and exact is not None and not exact.match(name):
                if alike.match(name):
                    passed_over.add(OTHER_CASE, entry)
            elif hidden:
                passed_over.add(HIDDEN, entry)
            elif not os.path.exists(entry):  # noqa: PTH110
                passed_over.add(NO_FILE, entry)
            elif os.path.islink(entry) and leads_out(entry, inside):  # noqa: PTH114
                passed_over.add(LINK, entry)
            elif not os.path.isfile(entry):  # noqa: PTH113
                passed_over.add(NO_FILE, entry)
            elif (size := _size(entry)) is None:
                passed_over.add(GONE, entry)
            elif size == 0:
                passed_over.add(EMPTY, entry)
            elif not _is_utf8(entry):
                passed_over.add(NOT_UTF8, entry)
            else:
                yield entry


def _files(path: str, inside: str, passed_over: PassedOver, seen: set[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """Yield the path of everything below a path except folders, and whether Spark treats it as hidden."""
    if leads_out(path, inside):
        passed_over.add(LINK, path)
        return
    if not os.path.isdir(path):  # noqa: PTH112
        yield path, False
        return
    waiting = [(path, False)]
    while waiting:
        folder, hidden = waiting.pop()
        try:
            at = os.stat(folder)  # noqa: PTH116
            # A pattern may match both a folder and its subfolder.
            if (at.st_dev, at.st_ino) in seen:
                continue
            seen.add((at.st_dev, at.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except PermissionError:
            passed_over.add(CLOSED, folder)
            continue
        # For example, the temporary folder of a Spark job that has ended meanwhile, or a file with its name.
        except (FileNotFoundError, NotADirectoryError):
            passed_over.add(GONE, folder)
            continue
        for entry in entries:
            below = hidden or is_hidden(entry.name)
            # `entry.is_dir()` would raise an error for a link to itself.
            if not os.path.isdir(entry.path):  # noqa: PTH112
                yield entry.path, below
            elif not entry.is_symlink():
                waiting.append((entry.path, below))
            # The target of a link within the folder is listed at its own path.
            elif leads_out(entry.path, inside):
                passed_over.add(LINK, entry.path)


def _size(path: str) -> int | None:
    """Return a file's size, or None if it was removed since it was listed."""
    try:
        return os.path.getsize(path)  # noqa: PTH202
    except FileNotFoundError:
        return None


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _regex(glob: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile("|".join(translate(part.replace("[^", "[!")) for part in _alternatives(glob)), flags)
