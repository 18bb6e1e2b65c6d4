"""How tables and columns are named: a path or a name of the catalog, quotes around either, and the case of letters."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from spark_aesthetic.errors import TableError
from spark_aesthetic.files import home

# A table at a path as SQL names it, and what an address begins with.
_BY_PATH, _SCHEME = re.compile(r"delta\.`((?:[^`]|``)+)`", re.IGNORECASE), re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

# One part of a name of the catalog.
_PART = r"(?:\w+|`(?:[^`]|``)+`)"

# Delta takes these in the name of a column under column mapping alone.
_UNUSUAL = set(" ,;{}()\n\t=")

# The beginning of the names of all columns that this package adds to a plan.
_ADDED = "_aesthetic_"


def identifier(table: str) -> str:
    """A table as SQL takes it: a catalog name as it is, a path (anything with a slash) as delta.`path`.

    Examples:
        >>> identifier("main.default.photos"), identifier("/data/photos"), identifier("s3://bucket/photos")
        ('main.default.photos', 'delta.`/data/photos`', 'delta.`s3://bucket/photos`')
    """
    path = path_of(table)
    return table if path is None else f"delta.{quoted(path)}"


def path_of(table: str) -> str | None:
    """The path of a table that is named by it, as Delta takes it; None for a name of the catalog.

    Examples:
        >>> path_of("/data/photos/"), path_of("delta.`/data/photos`"), path_of("main.default.photos")
        ('/data/photos', '/data/photos', None)
    """
    named = _BY_PATH.fullmatch(table)
    if named is not None:
        return whole(named[1].replace("``", "`"))
    return whole(table) if "/" in table else None


def whole(path: str) -> str:
    """Give a path as Delta takes it: `~` is the home folder, and a relative path begins at the driver's working folder.

    Every other character stands for itself, also those of patterns.
    """
    return path if _SCHEME.match(path) else os.path.abspath(home(path))  # noqa: PTH100 (Path.absolute would keep the "..")


def literal(path: str) -> str:
    r"""Escape a path for Spark's readers of files, which take it for a pattern.

    Examples:
        >>> print(literal("/data/a[1]/{x}"))
        /data/a\[1\]/\{x\}
    """
    return re.sub(r"([\\{}\[\]*?,])", r"\\\1", path)


def quoted(column: str) -> str:
    """A top-level column's name as SQL takes it, whatever characters it has."""
    return f"`{column.replace('`', '``')}`"


def name_parts(name: str) -> list[str] | None:
    """The parts of a name of the catalog, without their backquotes; None if it is no such name.

    Examples:
        >>> name_parts("main.default.photos"), name_parts("`a.b`.`c``d`"), name_parts("a b")
        (['main', 'default', 'photos'], ['a.b', 'c`d'], None)
    """
    if re.fullmatch(rf"{_PART}(\.{_PART})*", name) is None:
        return None
    return [part[1:-1].replace("``", "`") if part[0] == "`" else part for part in re.findall(_PART, name)]


def names(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name, several or none, as a tuple."""
    if columns is None:
        return ()
    return (columns,) if isinstance(columns, str) else tuple(columns)


def folded(column: str) -> str:
    """A column's name as names are compared here: whatever the case of letters.

    Spark compares them so unless spark.sql.caseSensitive is true, and table jobs set that to false in their sessions.
    """
    return column.lower()


def column_named(columns: Sequence[str], name: str) -> str | None:
    """The name as the columns spell it, or None if no column has it. A column of the same spelling comes first.

    Examples:
        >>> column_named(["id", "Photo"], "photo"), column_named(["photo", "Photo"], "photo"), column_named([], "photo")
        ('Photo', 'photo', None)
    """
    return name if name in columns else {folded(column): column for column in columns}.get(folded(name))


def has_column(columns: Iterable[str], name: str) -> bool:
    """Whether one of the columns has a name."""
    return folded(name) in map(folded, columns)


def lacking(columns: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Those of the wanted names that no column has.

    Examples:
        >>> lacking(["id", "Photo"], ["photo", "Caption"])
        ['Caption']
    """
    known = set(map(folded, columns))
    return [name for name in wanted if folded(name) not in known]


def are_distinct(columns: Sequence[str]) -> bool:
    """Whether a table can have all of these columns."""
    return len(set(map(folded, columns))) == len(columns)


def are_same_columns(left: Iterable[str], right: Iterable[str]) -> bool:
    """Whether two lists name the same columns, in any order."""
    return set(map(folded, left)) == set(map(folded, right))


def unusual(names: Iterable[str]) -> bool:
    """Whether a table needs Delta's column mapping to have columns of these names."""
    return any(_UNUSUAL & set(name) for name in names)


def check_own_name(column: str, option: str) -> None:
    """Raise TableError for a column that is called as those which this package adds to its plans."""
    if folded(column).startswith(_ADDED):
        raise TableError(
            f"{option}: expected a name that does not begin with {_ADDED}, as those of the columns do that the job "
            f"adds, found {column!r}. Rename it"
        )
