"""Find links in a local folder that lead out of it or to a folder.

Hadoop follows every link. One link to a parent folder makes it list the same files forty times, and two such links make
it list without end. In a folder with untrusted writers, a link could also lead anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Links:
    """The links that affect how folders are listed.

    Attributes:
        to_folders: Whether a link leads to a folder, or a root leads out; Spark must not list these folders.
        leading_out: Links to files outside the folder.
    """

    to_folders: bool = False
    leading_out: list[str] = field(default_factory=list)


def leads_out(path: str, inside: str) -> bool:
    """Whether a path, with all links resolved, leads out of the folder `inside`, which is a resolved path."""
    real = os.path.realpath(path)
    return real != inside and not real.startswith(inside.rstrip("/") + "/")


def is_hidden(name: str) -> bool:
    """Whether Spark ignores a file name; same rule as Spark's HadoopFSUtils."""
    return (name.startswith("_") and "=" not in name) or name.startswith(".") or name.endswith("._COPYING_")


def links_below(roots: Iterable[str], folder: str) -> Links:
    """Find links below folders. Only folder entries are read, so files cost no extra call.

    Args:
        roots: The folders or files.
        folder: The folder that no link may lead out of; it may be a link itself.
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
                # `entry.is_dir()` would raise an error for a link to itself.
                if os.path.isdir(entry.path):  # noqa: PTH112 (a name that is not UTF-8 is no Path)
                    found.to_folders = True
                elif leads_out(entry.path, inside):
                    found.leading_out.append(entry.path)
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    # This is a file, or a folder without access, which Spark reports itself.
    except OSError:
        return []
