"""The ledger of a scores table: its key, its sources, and how far each model has read each source.

The ledger is stored in the table properties. Values are JSON, with percent-encoding of every character that could
have a meaning in SQL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
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

# The prefix of the table properties that this package sets.
_PREFIX = "spark_aesthetic."
_KEY, _SOURCE = f"{_PREFIX}key", f"{_PREFIX}source/"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a model has read a source.

    Attributes:
        checkpoint: Name of the checkpoint's folder; each new stream has its own.
        generation: A number that grows with each new stream, so that Delta ignores chunks of an earlier one.
        began_empty: Whether the model had no row in the scores table before its first chunk. Chunks of the initial
            snapshot are then appended without a lookup of their keys.
        feed: Whether the source's change data feed is read instead of its files.
        starting_version: The source version at which the stream starts; None reads all rows of the source and then
            later changes.
        backbone: The architecture and checksum of the backbone, which determine the embeddings of this model.
        location: The source's folder. It identifies a source that was dropped and created again there, which has a
            new id.
        comparing: Whether a comparison of keys has started and has not finished.
        checked: The version of the scores table up to which all scores that other writers removed were scored again;
            None if only the metadata of commits records it.
        stream: Spark's id of the stream that created the checkpoint; None before its first chunk. If somebody deletes a
            checkpoint, Spark creates it again with another id.
        column: The source's column that is scored.
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
    column: str | None = None


@dataclass(frozen=True, kw_only=True)
class KnownSource:
    """A source of a scores table.

    Attributes:
        table: The table as the user named it.
        location: The table's folder.
    """

    table: str
    location: str


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The key, the sources and the progress that a scores table records.

    Attributes:
        key: The columns that, with the model, identify a row; None in a table of an earlier release.
        sources: The sources by Delta's unique id of the table.
        progress: The progress by model and id of the source.
    """

    key: tuple[str, ...] | None = None
    sources: Mapping[str, KnownSource] = field(default_factory=dict)
    progress: Mapping[tuple[str, str], Progress] = field(default_factory=dict)

    @classmethod
    def of(cls, known: Mapping[str, str]) -> Ledger:
        """Parse the properties of a scores table."""
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
        # Tables of earlier releases record their sources only in the progress.
        for (_, source), reached in progress.items():
            sources.setdefault(source, KnownSource(table=reached.location, location=reached.location))
        return cls(key=tuple(_decoded(known[_KEY])) if _KEY in known else None, sources=sources, progress=progress)

    def of_model(self, model: str) -> dict[str, Progress]:
        """Return the progress of a model by the source's id."""
        return {source: progress for (of, source), progress in self.progress.items() if of == model}

    def replaced_by(self, source: Origin, model: str) -> list[str]:
        """Return the ids of earlier tables at the source's location that a model has scored."""
        known = self.of_model(model).items()
        return [id for id, progress in known if progress.location == source.location and id != source.id]

    def others(self, source: Origin) -> list[KnownSource]:
        """Return the sources except this one and earlier tables at its location."""
        return [
            known for id, known in self.sources.items() if id != source.id and known.location != source.location
        ]  # fmt: skip

    def admits(self, source: Origin, *, shared_keys: bool) -> bool:
        """Whether the rows of a source may be written to this table.

        Equal keys of two sources would count as one image. Therefore a table admits its first source and known sources.
        Any other source requires `shared_keys`: the user states that equal keys mean the same image.
        """
        is_known = source.id in self.sources or any(
            known.location == source.location for known in self.sources.values()
        )
        return shared_keys or is_known or not self.sources

    def has_key(self, key: Sequence[str]) -> bool:
        """Whether the rows are identified by these columns, in any order and any case."""
        return self.key is None or are_same_columns(self.key, key)

    def backbones(self) -> dict[str, str]:
        """Return the backbone of each model, which determines its embeddings."""
        return {model: progress.backbone for (model, _), progress in self.progress.items()}


def load(spark: SparkSession, table: str) -> Ledger:
    """Load the ledger of a scores table, by its name or path."""
    return Ledger.of(properties(spark, identifier(table)))


def check(ledger: Ledger, scores: str, source: Origin, key: Sequence[str], *, shared_keys: bool) -> None:
    """Check that rows of a source may be written to a scores table under a key.

    Raises:
        TableError: The table has another key, or the rows of another source.
    """
    if not ledger.admits(source, shared_keys=shared_keys):
        raise _foreign(ledger, scores, source)
    check_key(ledger, scores, key)


def check_copy(spark: SparkSession, ledger: Ledger, scores: str, source: Origin) -> None:
    """Raise TableError if a source is a file-by-file copy of another source of the scores table.

    Delta identifies a table by an id in its files. A copy of the files has the same id, so its rows would count as
    read.
    """
    known = ledger.sources.get(source.id)
    if known is None or known.location == source.location:
        return
    try:
        there = tables.detail(spark, known.location)
    # The location may no longer exist.
    except TableError:
        return
    if there is not None and there.id == source.id:
        raise TableError(
            f"--scores {scores!r}: expected a source with its own table id, found {source.table!r}, a copy of the "
            f"files of {known.table!r}, which has scores here. Create it with CREATE TABLE … SHALLOW CLONE, write its "
            "rows to a new table, or choose another scores table."
        )


def check_key(ledger: Ledger, scores: str, key: Sequence[str]) -> None:
    """Raise TableError unless a scores table has this key."""
    if not ledger.has_key(key):
        raise TableError(
            f"--key {', '.join(key)}: expected {', '.join(ledger.key or ())}, the key of the scores {scores!r}, found "
            "another key. Pass the key of the scores, or choose another scores table."
        )


def _foreign(ledger: Ledger, scores: str, source: Origin) -> TableError:
    known = ", ".join(sorted({repr(other.table) for other in ledger.others(source)}))
    return TableError(
        f"--scores {scores!r}: expected only scores of {source.table!r}, found scores of {known}, in which an "
        "equal key may belong to a different image. Give each source its own scores table, or pass --shared-keys "
        "(shared_keys=True) if equal keys mean the same image in all of them."
    )


def described(source: Origin, key: Sequence[str]) -> dict[str, str]:
    """Return the table properties that record the key and a source."""
    known = KnownSource(table=source.table, location=source.location)
    return {_KEY: _encoded(list(key)), f"{_SOURCE}{source.id}": _encoded(asdict(known))}


def register(
    spark: SparkSession, scores: str, ledger: Ledger, source: Origin, key: Sequence[str], *, shared_keys: bool
) -> None:
    """Record the key and the source in a scores table unless its ledger has them.

    Raises:
        TableError: The table has another key or source, or another source was added at the same time.
    """
    check(ledger, scores, source, key, shared_keys=shared_keys)
    is_new = source.id not in ledger.sources
    noted = described(source, key)
    if ledger.key is not None:
        del noted[_KEY]
    else:
        # A table of an earlier release does not record its key, so check the key against the rows.
        identity.check_key_values(tables.read_table(spark, scores), key, beside=(MODEL,))
    if not is_new:
        del noted[f"{_SOURCE}{source.id}"]
    save(spark, scores, noted)
    if is_new and not shared_keys and (found := load(spark, scores)).others(source):
        forget(spark, scores, noted)
        raise _foreign(found, scores, source)


def save_progress(
    spark: SparkSession, target: Target, changed: Mapping[str, Progress], *, known: Mapping[str, Progress]
) -> None:
    """Record the progress of the target's model, keyed by source id.

    A chunk that another run is writing at the same time fails to commit.

    Args:
        spark: A session from `own_session`.
        target: The scores table.
        changed: The new progress.
        known: The progress from which the new one was derived.

    Raises:
        TableError: A second run has started a new stream over one of the sources.
    """

    def check() -> None:
        now = load(spark, target.table).of_model(target.model)
        if any(_checkpoint(now.get(source)) != _checkpoint(known.get(source)) for source in changed):
            raise TableError(
                f"scores {target.table!r}: expected only this run to write {target.model}, found that a second run has "
                "started a new stream; no row was lost or written twice. Run again when that run has finished."
            )

    noted = {_progress(target.model, source): _encoded(asdict(progress)) for source, progress in changed.items()}
    save(spark, target.table, noted, check)


def forget_sources(spark: SparkSession, target: Target, sources: Iterable[str]) -> None:
    """Remove sources, by their id, and this model's progress over them; other models keep their progress."""
    forget(spark, target.table, [name for id in sources for name in (_progress(target.model, id), f"{_SOURCE}{id}")])


def end_beginnings(spark: SparkSession, target: Target) -> None:
    """Make running streams look up the keys of their chunks.

    Without this, the stream of an initial snapshot would append rows that the calling run has scored.
    """
    known = load(spark, target.table).of_model(target.model)
    save_progress(spark, target, ended_beginnings(known), known=known)


def ended_beginnings(known: Mapping[str, Progress], *, but: str | None = None) -> dict[str, Progress]:
    """Return the progress of each source that has `began_empty`, except `but`, with `began_empty` set to false.

    Once this is saved, a running stream cannot commit a chunk without looking up its keys.
    """
    return {
        source: replace(progress, began_empty=False)
        for source, progress in known.items()
        if progress.began_empty and source != but
    }


def save(spark: SparkSession, table: str, values: Mapping[str, str], check: Callable[[], None] = lambda: None) -> None:
    """Set properties of a table. `check` may raise an error; it runs before each attempt."""
    if values:
        text = properties_clause(values)
        committed(lambda: statement(spark, f"ALTER TABLE {identifier(table)} SET TBLPROPERTIES {text}"), check)


def forget(spark: SparkSession, table: str, names: Iterable[str]) -> None:
    """Unset properties of a table."""
    listed = ", ".join(f"'{name}'" for name in names)
    if listed:
        text = f"ALTER TABLE {identifier(table)} UNSET TBLPROPERTIES IF EXISTS ({listed})"
        committed(lambda: statement(spark, text))


def _checkpoint(progress: Progress | None) -> str | None:
    return None if progress is None else progress.checkpoint


def _progress(model: str, source_id: str) -> str:
    return f"{_PREFIX}{model}/{source_id}"


def _encoded(value: Any) -> str:
    return quote(json.dumps(value), safe=" ,:{}[]/@-._~")


def _decoded(text: str) -> Any:
    # Earlier releases did not percent-encode the JSON.
    return json.loads(text if '"' in text else unquote(text))
