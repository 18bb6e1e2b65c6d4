"""Links in a local folder: which of them lead out of it, and whether any of them leads to a folder.

Hadoop follows every link, so one to a folder above makes it list the same files forty times, and two of them without
an end. A folder that strangers write to could also lead anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Links:
    """What the links below some folders mean for their listing.

    Attributes:
        to_folders: Whether some lead to folders, or a folder itself leads out: Spark is not to list those.
        leading_out: Links to files elsewhere.
    """

    to_folders: bool = False
    leading_out: list[str] = field(default_factory=list)


def leads_out(path: str, inside: str) -> bool:
    """Whether a path, by all of its links, leads out of a folder; `inside` is that folder without links."""
    real = os.path.realpath(path)
    return real != inside and not real.startswith(inside.rstrip("/") + "/")


def is_hidden(name: str) -> bool:
    """Whether Spark leaves out a name, as its HadoopFSUtils has it."""
    return (name.startswith("_") and "=" not in name) or name.startswith(".") or name.endswith("._COPYING_")


def links_below(roots: Iterable[str], folder: str) -> Links:
    """Look for links below folders, which asks the file system of nothing but the entries of each folder.

    Args:
        roots: The folders, or files.
        folder: The folder that none of them may lead out of; it may be a link itself.
    """
    inside = os.path.realpath(folder)
    found = Links()
    waiting = []
    for root in roots:
        if leads_out(root, inside):
            found.to_folders = True
        else:
            waiting.append(root)
    while waiting:
        for entry in _entries(waiting.pop()):
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.is_symlink():
                # Not by the entry, which raises an error where a link leads to itself.
                if os.path.isdir(entry.path):  # noqa: PTH112 (a name that is not UTF-8 is no Path)
                    found.to_folders = True
                elif leads_out(entry.path, inside):
                    found.leading_out.append(entry.path)
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    # A file; or a folder without access, of which Spark says so.
    except OSError:
        return []
