"""Names of tables and columns: paths and catalog names, quoting, and comparison without regard to case."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from spark_aesthetic.errors import TableError
from spark_aesthetic.files import home

# delta.`path` in SQL, and the scheme at the start of an address.
_BY_PATH, _SCHEME = re.compile(r"delta\.`((?:[^`]|``)+)`", re.IGNORECASE), re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

# One part of a catalog name.
_PART = r"(?:\w+|`(?:[^`]|``)+`)"

# Delta allows these characters in a column's name only with column mapping.
_UNUSUAL = set(" ,;{}()\n\t=")

# The prefix of all columns that this package adds to a plan.
_ADDED = "_aesthetic_"


def identifier(table: str) -> str:
    """Return a table's SQL identifier: a catalog name unchanged, a path (anything with a slash) as delta.`path`.

    Examples:
        >>> identifier("main.default.photos"), identifier("/data/photos"), identifier("s3://bucket/photos")
        ('main.default.photos', 'delta.`/data/photos`', 'delta.`s3://bucket/photos`')
    """
    path = path_of(table)
    return table if path is None else f"delta.{quoted(path)}"


def path_of(table: str) -> str | None:
    """Return the full path of a table that is named by a path, or None for a catalog name.

    Examples:
        >>> path_of("/data/photos/"), path_of("delta.`/data/photos`"), path_of("main.default.photos")
        ('/data/photos', '/data/photos', None)
    """
    named = _BY_PATH.fullmatch(table)
    if named is not None:
        return whole(named[1].replace("``", "`"))
    return whole(table) if "/" in table else None


def whole(path: str) -> str:
    """Return the full path: `~` is the home folder, and a relative path begins at the driver's working folder.

    All other characters are literal, including those of glob patterns.
    """
    return path if _SCHEME.match(path) else os.path.abspath(home(path))  # noqa: PTH100 (Path.absolute would keep the "..")


def literal(path: str) -> str:
    r"""Escape a path for Spark's file readers, which read a path as a glob pattern.

    Examples:
        >>> print(literal("/data/a[1]/{x}"))
        /data/a\[1\]/\{x\}
    """
    return re.sub(r"([\\{}\[\]*?,])", r"\\\1", path)


def quoted(column: str) -> str:
    """Put a name, such as that of a top-level column, in backquotes for SQL. Any character is allowed."""
    return f"`{column.replace('`', '``')}`"


def name_parts(name: str) -> list[str] | None:
    """Split a catalog name into its parts, without backquotes; None if it is not a valid name.

    Examples:
        >>> name_parts("main.default.photos"), name_parts("`a.b`.`c``d`"), name_parts("a b")
        (['main', 'default', 'photos'], ['a.b', 'c`d'], None)
    """
    if re.fullmatch(rf"{_PART}(\.{_PART})*", name) is None:
        return None
    return [part[1:-1].replace("``", "`") if part[0] == "`" else part for part in re.findall(_PART, name)]


def names(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return one name, several names or None as a tuple."""
    if columns is None:
        return ()
    return (columns,) if isinstance(columns, str) else tuple(columns)


def folded(column: str) -> str:
    """Convert a column's name to lower case, because names are compared without regard to case.

    Spark does the same unless spark.sql.caseSensitive is true. Table jobs set it to false in their sessions.
    """
    return column.lower()


def column_named(columns: Sequence[str], name: str) -> str | None:
    """Return the name as the columns spell it, or None if no column has it. An exact match comes first.

    Examples:
        >>> column_named(["id", "Photo"], "photo"), column_named(["photo", "Photo"], "photo"), column_named([], "photo")
        ('Photo', 'photo', None)
    """
    return name if name in columns else {folded(column): column for column in columns}.get(folded(name))


def has_column(columns: Iterable[str], name: str) -> bool:
    """Whether one of the columns has this name."""
    return folded(name) in map(folded, columns)


def lacking(columns: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Return the wanted names that no column has.

    Examples:
        >>> lacking(["id", "Photo"], ["photo", "Caption"])
        ['Caption']
    """
    known = set(map(folded, columns))
    return [name for name in wanted if folded(name) not in known]


def are_distinct(columns: Sequence[str]) -> bool:
    """Whether no two of the columns have the same name."""
    return len(set(map(folded, columns))) == len(columns)


def are_same_columns(left: Iterable[str], right: Iterable[str]) -> bool:
    """Whether two lists name the same columns, in any order."""
    return set(map(folded, left)) == set(map(folded, right))


def unusual(names: Iterable[str]) -> bool:
    """Whether Delta allows columns of these names only with column mapping."""
    return any(_UNUSUAL & set(name) for name in names)


def check_own_name(column: str, option: str) -> None:
    """Raise TableError if a column's name has the prefix of the columns that this package adds to a plan."""
    if folded(column).startswith(_ADDED):
        raise TableError(
            f"{option}: expected a name that does not begin with {_ADDED}, the prefix of columns that the job adds, "
            f"found {column!r}. Rename the column."
        )
