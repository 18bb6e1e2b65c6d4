"""What a scores table knows of itself, kept among its properties: its key, its sources, and how far each has come.

Values are JSON in which every letter that could mean something in SQL is percent-encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import quote, unquote

from pyspark.sql import SparkSession

from spark_aesthetic.delta import identity, tables
from spark_aesthetic.delta.commits import committed, properties, properties_clause
from spark_aesthetic.delta.naming import are_same_columns, identifier
from spark_aesthetic.delta.sessions import statement
from spark_aesthetic.delta.tables import Origin
from spark_aesthetic.errors import TableError
from spark_aesthetic.scoring.target import MODEL, Target

# In front of every name of ours among the properties of a scores table.
_PREFIX = "spark_aesthetic."
_KEY, _SOURCE = f"{_PREFIX}key", f"{_PREFIX}source/"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a model has come with a source.

    Attributes:
        checkpoint: Name of the checkpoint's folder; another one for each beginning.
        generation: A number that grows with each beginning, so that Delta refuses chunks of an earlier one.
        began_empty: The model had no row here before its first chunk, so the next ones of the beginning meet none.
        feed: The source's change data feed is read, not its files.
        starting_version: Of the source; None is all of its rows at the beginning and what comes after.
        backbone: What the embeddings of this model depend on.
        location: The source's folder: a table made anew there is another one to Delta, and the same to its users.
        comparing: A comparison of keys has begun, and has not ended.
        checked: The version of the scores table up to which no commit of others took scores away, or what they took has
            been scored again; None where only the commits of scores tell.
        stream: Spark's id of the stream that has begun the checkpoint; None before its first chunk. Where somebody has
            deleted a checkpoint, Spark makes it anew with another id.
    """

    checkpoint: str
    generation: int
    began_empty: bool
    feed: bool
    starting_version: int | None
    backbone: str
    location: str
    comparing: bool = False
    checked: int | None = None
    stream: str | None = None


@dataclass(frozen=True, kw_only=True)
class KnownSource:
    """A source of a scores table.

    Attributes:
        table: As its user named it.
        location: Its folder.
    """

    table: str
    location: str


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All that a scores table knows of itself.

    Attributes:
        key: The columns that, with the model, identify a row; None in a table that an earlier release has made.
        sources: By Delta's id, which no other table ever has.
        progress: By model and the source's id.
    """

    key: tuple[str, ...] | None = None
    sources: Mapping[str, KnownSource] = field(default_factory=dict)
    progress: Mapping[tuple[str, str], Progress] = field(default_factory=dict)

    @classmethod
    def of(cls, known: Mapping[str, str]) -> Ledger:
        """Read the properties of a scores table."""
        sources: dict[str, KnownSource] = {}
        progress: dict[tuple[str, str], Progress] = {}
        for name, text in known.items():
            model, slash, source = name.removeprefix(_PREFIX).rpartition("/")
            if not name.startswith(_PREFIX) or not slash:
                continue
            if name.startswith(_SOURCE):
                sources[source] = KnownSource(**_decoded(text))
            else:
                progress[model, source] = Progress(**_decoded(text))
        # Tables of earlier releases know their sources by their progress alone.
        for (_, source), reached in progress.items():
            sources.setdefault(source, KnownSource(table=reached.location, location=reached.location))
        return cls(key=tuple(_decoded(known[_KEY])) if _KEY in known else None, sources=sources, progress=progress)

    def of_model(self, model: str) -> dict[str, Progress]:
        """How far a model has come, by the source's id."""
        return {source: progress for (of, source), progress in self.progress.items() if of == model}

    def replaced_by(self, source: Origin, model: str) -> list[str]:
        """The ids of earlier tables in a source's place that a model has scored."""
        known = self.of_model(model).items()
        return [id for id, progress in known if progress.location == source.location and id != source.id]

    def others(self, source: Origin) -> list[KnownSource]:
        """The sources that are neither this one nor an earlier table in its place."""
        return [
            known for id, known in self.sources.items() if id != source.id and known.location != source.location
        ]  # fmt: skip

    def admits(self, source: Origin, *, shared_keys: bool) -> bool:
        """Whether the rows of a source may go to this table.

        Equal keys of two sources would pass for one image. So a table takes the sources that it knows, its first one,
        and others only where their user says that equal keys mean the same image.
        """
        is_known = source.id in self.sources or any(
            known.location == source.location for known in self.sources.values()
        )
        return shared_keys or is_known or not self.sources

    def has_key(self, key: Sequence[str]) -> bool:
        """Whether the rows are identified by these columns, in any order and any case."""
        return self.key is None or are_same_columns(self.key, key)

    def backbones(self) -> dict[str, str]:
        """What the embeddings of each model depend on."""
        return {model: progress.backbone for (model, _), progress in self.progress.items()}


def load(spark: SparkSession, table: str) -> Ledger:
    """The ledger of a scores table, by its name or path."""
    return Ledger.of(properties(spark, identifier(table)))


def check(ledger: Ledger, scores: str, source: Origin, key: Sequence[str], *, shared_keys: bool) -> None:
    """Check that rows of a source may go to a scores table under a key.

    Raises:
        TableError: The table has another key, or the rows of another source.
    """
    if not ledger.admits(source, shared_keys=shared_keys):
        raise _foreign(ledger, scores, source)
    check_key(ledger, scores, key)


def check_copy(spark: SparkSession, ledger: Ledger, scores: str, source: Origin) -> None:
    """Raise TableError if a source is a copy of one that the scores table knows, file by file.

    Delta knows a table by an id in its files. A copy of the files has it too, and its rows would pass for read.
    """
    known = ledger.sources.get(source.id)
    if known is None or known.location == source.location:
        return
    try:
        there = tables.detail(spark, known.location)
    # The place itself may be gone.
    except TableError:
        return
    if there is not None and there.id == source.id:
        raise TableError(
            f"--scores {scores!r}: expected a source with an id of its own, found {source.table!r}, a copy of the "
            f"files of {known.table!r}, whose scores are there. Make it with CREATE TABLE … SHALLOW CLONE, or "
            "write its rows anew, or choose another scores table"
        )


def check_key(ledger: Ledger, scores: str, key: Sequence[str]) -> None:
    """Raise TableError unless a scores table has this key."""
    if not ledger.has_key(key):
        raise TableError(
            f"--key {', '.join(key)}: expected the key of the scores {scores!r}, {', '.join(ledger.key or ())}, found "
            "another one. Name that, or choose another scores table"
        )


def _foreign(ledger: Ledger, scores: str, source: Origin) -> TableError:
    known = ", ".join(sorted({repr(other.table) for other in ledger.others(source)}))
    return TableError(
        f"--scores {scores!r}: expected the scores of {source.table!r} alone, found those of {known}, where equal keys "
        "may be other images. Give each source a scores table of its own, or, if equal keys mean the same image in all "
        "of them, pass --shared-keys (shared_keys=True)"
    )


def described(source: Origin, key: Sequence[str]) -> dict[str, str]:
    """The properties of a scores table that is made for a source."""
    known = KnownSource(table=source.table, location=source.location)
    return {_KEY: _encoded(list(key)), f"{_SOURCE}{source.id}": _encoded(asdict(known))}


def register(
    spark: SparkSession, scores: str, ledger: Ledger, source: Origin, key: Sequence[str], *, shared_keys: bool
) -> None:
    """Note the key and the source in a scores table, unless its ledger has them.

    Raises:
        TableError: `check` refuses the source or the key, or a run over another source has just begun.
    """
    check(ledger, scores, source, key, shared_keys=shared_keys)
    is_new = source.id not in ledger.sources
    noted = described(source, key)
    if ledger.key is not None:
        del noted[_KEY]
    else:
        # A table of an earlier release; its rows alone tell what identifies them.
        identity.check_key_values(tables.read_table(spark, scores), key, beside=(MODEL,))
    if not is_new:
        del noted[f"{_SOURCE}{source.id}"]
    save(spark, scores, noted)
    if is_new and not shared_keys and (found := load(spark, scores)).others(source):
        forget(spark, scores, noted)
        raise _foreign(found, scores, source)


def save_progress(spark: SparkSession, target: Target, changed: Mapping[str, Progress]) -> None:
    """Note how far the target's model has come with some sources, by their id.

    A chunk that another run is writing then fails to commit.
    """
    noted = {_progress(target.model, source): _encoded(asdict(progress)) for source, progress in changed.items()}
    save(spark, target.table, noted)


def forget_sources(spark: SparkSession, target: Target, sources: Iterable[str]) -> None:
    """Know nothing of some sources any more, by their id; other models keep their progress."""
    forget(spark, target.table, [name for id in sources for name in (_progress(target.model, id), f"{_SOURCE}{id}")])


def ended_beginnings(spark: SparkSession, target: Target, *, but: str | None = None) -> dict[str, Progress]:
    """The progress of all sources, except one, that counted on being alone, changed so that it no longer does.

    Once that is saved, a stream at work fails to commit the chunk that it has not looked up the keys of.
    """
    known = load(spark, target.table).of_model(target.model)
    return {
        source: replace(progress, began_empty=False)
        for source, progress in known.items()
        if progress.began_empty and source != but
    }


def save(spark: SparkSession, table: str, values: Mapping[str, str]) -> None:
    """Set properties of a table."""
    if values:
        text = properties_clause(values)
        committed(lambda: statement(spark, f"ALTER TABLE {identifier(table)} SET TBLPROPERTIES {text}"))


def forget(spark: SparkSession, table: str, names: Iterable[str]) -> None:
    """Unset properties of a table."""
    listed = ", ".join(f"'{name}'" for name in names)
    if listed:
        text = f"ALTER TABLE {identifier(table)} UNSET TBLPROPERTIES IF EXISTS ({listed})"
        committed(lambda: statement(spark, text))


def _progress(model: str, source_id: str) -> str:
    return f"{_PREFIX}{model}/{source_id}"


def _encoded(value: Any) -> str:
    return quote(json.dumps(value), safe=" ,:{}[]/@-._~")


def _decoded(text: str) -> Any:
    # Earlier releases wrote JSON as it is.
    return json.loads(text if '"' in text else unquote(text))
