"""With hostile names of keys, folders and columns, a scores table holds what a plain dictionary says.

`SPARK_AESTHETIC_EXAMPLES=50 pytest tests/spark/scoring/test_hostile_names.py` draws more examples than `make test`
does.
"""

from __future__ import annotations

import datetime
import os
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import CONNECT
from delta.tables import DeltaTable
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BooleanType, FloatType, StringType, StructField, StructType

import spark_aesthetic as sa
from spark_aesthetic.testing import PUBLISHED_SCORES, published_embeddings

EXAMPLES = int(os.environ.get("SPARK_AESTHETIC_EXAMPLES", "1"))
pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.timeout(120 + 90 * EXAMPLES),
    pytest.mark.skipif(
        CONNECT, reason="changes its tables with delta.tables, for which a Connect server needs a plugin"
    ),
]
drawn = settings(
    max_examples=EXAMPLES,
    # The examples are the same on every machine.
    derandomize=True,
    deadline=None,
    # An example takes half a minute, so a failure is reported as it was drawn, not in its smallest form.
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
    # `interpreted` only sets two settings of the session, and every example has tables of its own in `tmp_path`.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

V2, V1 = "laion-aesthetics-v2", "laion-aesthetics-v1"
PUBLISHED = [row.astype(float).tolist() for row in published_embeddings()]
# A row of the source may hold one of these in place of the number of a published embedding.
WRONG_LENGTH, NULL = -1, -2
REASONS = {WRONG_LENGTH: "embedding: wrong length", NULL: "null"}

COMPOSED, DECOMPOSED, RIGHT_TO_LEFT, EMOJI = "caf\u00e9", "cafe\u0301", "\u200f\u05d0", "\U0001f98a"
FRAGMENTS = [
    "'", '"', "`", "\\", "${env:HOME}", "${system:user.name}", "${spark.app.name}", "${", ";--", "%", "%20", "%s", "#",
    "?", "*", "[a]", "{x}", "~", COMPOSED, DECOMPOSED, RIGHT_TO_LEFT, EMOJI, " ", ",", "=", "(", "&", "$1", "a", "B",
    "''", "' OR 1=1", "\\'", "__",
]  # fmt: skip
PLAIN_NAMES = [
    "copies", "row", "last", "scored", "newest", "target", "source", "key", "_changed", "_deleted", "_copies", "merged",
    "select", "a.b", "value", "error", "embedding", "score", "model", "rows", "path", "count", "_made_at", "__rows",
]  # fmt: skip
VALUES = ["", "\0", "a\0b", "\n", "\t", "a", "A", COMPOSED, DECOMPOSED, "apple" * 9, f"{'apple' * 9}s", EMOJI * 33]

# Types of a second column of a key, with some of their values.
SECOND = {
    "bigint": [0, -1, 2**62],
    "date": [datetime.date(1, 1, 1), datetime.date(1970, 1, 1), datetime.date(9999, 12, 31)],
    "binary": [b"", b"'\x00\xff", b"\\'"],
    "timestamp": [datetime.datetime(1582, 10, 15), datetime.datetime(2026, 3, 29, 2, 30, 0, 1)],
    "boolean": [True, False],
}

Key = tuple[Any, ...]
_number = count()

words = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=3).map("".join)
values = st.one_of(words, st.sampled_from(VALUES), st.text(st.characters(codec="utf-8"), max_size=4))
contents = st.sampled_from([*range(10), WRONG_LENGTH, NULL])
changing_steps = ["append", "update", "delete", "all of it", "mend"]
other_steps = ["retry", "another model", "lost scores"]


@dataclass(frozen=True)
class World:
    """The values that are drawn for an example.

    Attributes:
        columns: Names of the two key columns, the embedding, the version and one more column.
        second: Type of the second key column, or None if the key has one column.
        second_first: Whether the second key column stands before the first.
        keys: Some keys. The first is a row that is never deleted and always has a score.
        contents: The contents of rows, in the order in which rows are written.
        folders: Folders of source, scores and checkpoints, or None for tables in the catalog.
        feed: Whether the source has a change data feed. Otherwise it has a column of versions.
        max_files: The most files of a chunk.
        steps: The steps after the first run.
    """

    columns: list[str]
    second: str | None
    second_first: bool
    keys: list[Key]
    contents: list[int]
    folders: list[str] | None
    feed: bool
    max_files: int | None
    steps: list[str]


def unlike(names: list[str]) -> bool:
    """Return whether names differ for Spark, which ignores case."""
    return len({name.lower() for name in names}) == len(names)


@st.composite
def worlds(draw: st.DrawFn, steps: list[str]) -> World:
    second = draw(st.sampled_from([None, *SECOND]))
    keys = st.tuples(values) if second is None else st.tuples(values, st.sampled_from(SECOND[second]))
    names = st.one_of(words, st.sampled_from(PLAIN_NAMES))
    return World(
        columns=draw(st.lists(names, min_size=5, max_size=5).filter(unlike)),
        second=second,
        second_first=draw(st.booleans()),
        keys=draw(st.lists(keys, min_size=9, max_size=9, unique=True)),
        contents=draw(st.lists(contents, min_size=9, max_size=9)),
        folders=draw(st.one_of(st.lists(words, min_size=3, max_size=3, unique=True), st.none())),
        feed=draw(st.booleans()),
        max_files=draw(st.sampled_from([1, None])),
        steps=draw(st.permutations(steps))[:3],
    )


def quoted(name: str) -> str:
    return f"`{name.replace('`', '``')}`"


class Tables:
    """A source and its scores table, with dictionaries of their expected contents."""

    def __init__(self, spark: SparkSession, world: World, base: Path, predictors: dict[str, list[float]]) -> None:
        self.spark, self.world, self.base, self.published = spark, world, base, predictors
        number = next(_number)
        if world.folders is None:
            self.source, self.scores = f"default.hostile_source_{number}", f"default.hostile_scores_{number}"
            self.checkpoint = str(base / "checkpoint")
        else:
            self.source, self.scores, self.checkpoint = (str(base / folder) for folder in world.folders)
        self.view = f"hostile_view_{number}"
        text, second, self.embedding, self.version, self.further = world.columns
        types = {text: "string"} if world.second is None else {text: "string", second: world.second}
        self.types = dict(reversed(types.items())) if world.second_first else types
        self.schema = StructType()
        for name, kind in self.types.items():
            self.schema = self.schema.add(name, kind)
        self.schema = self.schema.add(self.embedding, ArrayType(FloatType())).add(self.version, StringType())
        self.schema = self.schema.add(self.further, StringType())
        self.keys, self.contents = list(world.keys), list(world.contents)
        # These are the contents of the source, the contents that each model saw in its last run, and the writes since
        # then.
        self.rows: dict[Key, int] = {}
        self.seen: dict[str, dict[Key, int]] = {}
        self.written: dict[str, Counter[Key]] = {}
        self.versions = count()

    def frame(self, rows: dict[Key, int | None]) -> DataFrame:
        """Return rows with the columns of the source, and a column that marks deletions."""
        listed = []
        for key, content in rows.items():
            values = key[::-1] if self.world.second_first else key
            embedding = None if content in (None, NULL) else [1.0] if content == WRONG_LENGTH else PUBLISHED[content]
            # Every write gives a row a new version.
            version = f"{self.world.columns[0]}{next(self.versions)}"
            listed.append((*values, embedding, version, self.world.columns[-1], content is None))
        return self.spark.createDataFrame(listed, StructType([*self.schema, StructField("zz_gone", BooleanType())]))

    def make(self, rows: dict[Key, int]) -> None:
        """Create the source with its rows."""
        builder = DeltaTable.create(self.spark).addColumns(self.schema)
        builder = builder.property("delta.columnMapping.mode", "name")
        builder = builder.property("delta.enableChangeDataFeed", str(self.world.feed).lower())
        if self.world.folders is None:
            builder.tableName(self.source).execute()
        else:
            # Delta's builder puts the folder's name into SQL, so the table gets that name later.
            builder.location(f"{self.base}-new").execute()
            Path(f"{self.base}-new").rename(self.source)
        self.append(rows)

    def append(self, rows: dict[Key, int]) -> None:
        """Append new rows, each in a file of its own."""
        writer = self.frame(dict(rows)).drop("zz_gone").repartition(len(rows)).write.format("delta").mode("append")
        writer.saveAsTable(self.source) if self.world.folders is None else writer.save(self.source)
        self._note(dict(rows))

    def change(self, rows: dict[Key, int | None]) -> None:
        """Insert, update and (if the content is None) delete rows, in one commit."""
        table = self.delta(self.source).alias("t").merge(self.frame(rows).alias("s"), self.same_key())
        gone = F.col("s.zz_gone")
        # The columns are listed, because Delta's "all" does not escape a backquote in a name.
        sets = {quoted(name): F.col(f"s.{quoted(name)}") for name in self.schema.names}
        table.whenMatchedDelete(gone).whenMatchedUpdate(~gone, sets).whenNotMatchedInsert(~gone, sets).execute()
        self._note(rows)

    def delta(self, table: str) -> DeltaTable:
        return (DeltaTable.forPath if "/" in table else DeltaTable.forName)(self.spark, table)

    def same_key(self) -> Column:
        condition = F.lit(True)
        for name in self.types:
            condition &= F.col(f"t.{quoted(name)}") == F.col(f"s.{quoted(name)}")
        return condition

    def _note(self, rows: dict[Key, int | None]) -> None:
        for key, content in rows.items():
            if content is None:
                del self.rows[key]
            else:
                self.rows[key] = content
        for written in self.written.values():
            # The keys are given, because a Counter would add the values of a mapping.
            written.update(rows.keys())

    def load(self, table: str) -> DataFrame:
        return self.spark.read.format("delta").load(table) if "/" in table else self.spark.table(table)

    def run(self, model: str, **options: Any) -> None:
        """Score the source, then compare the summary and both tables with the dictionaries."""
        before, written = self.seen.get(model, {}), self.written.get(model, Counter())
        arguments: dict[str, Any] = {} if self.world.feed else {"version_col": self.version}
        done = sa.score_table(
            self.spark, source=self.source, key=list(self.types), embedding_col=self.embedding, scores=self.scores,
            checkpoint=self.checkpoint, predictor=model, max_files_per_chunk=self.world.max_files, **arguments,
            **options,
        )  # fmt: skip
        self.seen[model], self.written[model] = dict(self.rows), Counter()
        assert self.found_scores() == {
            (key, name): self.told(content) for name, rows in self.seen.items() for key, content in rows.items()
        }
        self.assert_source_untouched()
        if all(times == 1 for times in written.values()):
            worked = [key for key in self.rows if key not in before or key in written]
            if options.get("retry_failed"):
                worked += [key for key in self.rows if key not in worked and before[key] < 0]
            expected = {
                "rows_read": len(self.rows),
                "scored": sum(self.rows[key] >= 0 for key in worked),
                "failed": sum(self.rows[key] < 0 for key in worked),
                "skipped": len(self.rows) - len(worked),
                "dropped": len(before.keys() - self.rows.keys()),
            }
            assert {name: getattr(done, name) for name in expected} == expected
            assert done.failed_by_reason == Counter(REASONS[self.rows[key]] for key in worked if self.rows[key] < 0)

    def run_in_place(self, **options: Any) -> sa.Summary:
        """Score the source's own columns, then compare them with the dictionary."""
        done = sa.score_table(
            self.spark, source=self.source, key=list(self.types), embedding_col=self.embedding,
            checkpoint=self.checkpoint, max_files_per_chunk=self.world.max_files, **options,
        )  # fmt: skip
        made = ["aesthetic_model", "aesthetic_score", "aesthetic_error"]
        rows = self.load(self.source).select(*map(quoted, self.types), *made).collect()
        found = [(self.key_of(row), self.content_of(*row[-3:])) for row in rows]
        assert dict(found) == {key: self.told(content) for key, content in self.rows.items()}
        assert len(found) == len(self.rows)
        self.assert_source_untouched()
        return done

    def told(self, content: int) -> int | str:
        return REASONS.get(content, content)

    def found_scores(self) -> dict[tuple[Key, str], int | str]:
        """Return the scores table, with the number of the embedding that has each score."""
        rows = self.load(self.scores).select(
            *map(quoted, self.types), "aesthetic_model", "aesthetic_score", "aesthetic_error"
        )
        found = [((self.key_of(row), row[-3].split("@")[0]), self.content_of(*row[-3:])) for row in rows.collect()]
        assert len(dict(found)) == len(found), f"a key and model stand twice: {found}"
        return dict(found)

    def key_of(self, row: Any) -> Key:
        values = [bytes(value) if isinstance(value, bytearray) else value for value in row[: len(self.types)]]
        return tuple(values[::-1] if self.world.second_first else values)

    def content_of(self, model: str, score: float | None, error: str | None) -> int | str | None:
        if score is None:
            return error
        published = self.published[model.split("@")[0]]
        close = [at for at, expected in enumerate(published) if abs(score - expected) < 1e-3]
        return close[0] if close else f"a score of {score}"

    def assert_source_untouched(self) -> None:
        names = [*map(quoted, self.types), quoted(self.embedding), quoted(self.further)]
        found = [(self.key_of(row), row[-2], row[-1]) for row in self.load(self.source).select(*names).collect()]
        assert {key: further for key, _, further in found} == dict.fromkeys(self.rows, self.world.columns[-1])
        for key, embedding, _ in found:
            content = self.rows[key]
            assert embedding == pytest.approx(PUBLISHED[content], abs=1e-6) if content >= 0 else content in REASONS

    def assert_view(self) -> None:
        """Check that the view has each row of the source once, with the result of each model."""
        view = self.spark.table(self.view)
        for model in self.seen:
            suffix = model.replace("-", "_")
            rows = view.select(*map(quoted, self.types), f"aesthetic_score_{suffix}", f"aesthetic_error_{suffix}")
            found = [(self.key_of(row), self.content_of(model, *row[-2:])) for row in rows.collect()]
            assert dict(found) == {key: self.told(self.seen[model][key]) for key in self.rows}
            assert len(found) == len(self.rows)

    def assert_no_stray_files(self) -> None:
        """Check that nothing was written to a folder of a different name."""
        folders = {"checkpoint"} if self.world.folders is None else set(self.world.folders)
        assert {path.name for path in self.base.iterdir()} == folders

    def new(self, number: int) -> dict[Key, int]:
        """Return rows that the source does not have."""
        return {self.keys.pop(): self.contents.pop() for _ in range(number)}

    def some(self, number: int) -> list[Key]:
        """Return keys of the source, failed rows first, without the row that always stays."""
        rest = [key for key in self.rows if key != self.world.keys[0]]
        return sorted(rest, key=lambda key: self.rows[key] >= 0)[:number]

    def do(self, step: str) -> None:
        """Change a table, as a step says, and run."""
        options: dict[str, Any] = {}
        if step == "append":
            self.append(self.new(2))
        elif step == "update":
            self.change({key: (self.rows[key] + 3) % 10 for key in self.some(9)[-2:]})
        elif step == "delete":
            self.change(dict.fromkeys(self.some(9)[-1:]))
        elif step == "all of it":
            changed, gone, *_ = self.some(2)
            self.change({changed: WRONG_LENGTH, gone: None, **self.new(1)})
        elif step == "mend":
            failed = [key for key, content in self.rows.items() if content < 0]
            self.change({key: at for at, key in enumerate(failed[:1])} or {self.world.keys[0]: 4})
            options["retry_failed"] = True
        elif step == "retry":
            options["retry_failed"] = True
        elif step == "lost scores":
            lost = self.some(9)[-1]
            keys = self.frame({lost: None}).alias("s")
            ours = self.same_key() & F.col("t.aesthetic_model").startswith(f"{V2}@")
            self.delta(self.scores).alias("t").merge(keys, ours).whenMatchedDelete().execute()
            del self.seen[V2][lost]
            options["reconcile"] = True
        if step in changing_steps[1:] and not self.world.feed:
            options["reconcile"] = True
        if step == "another model":
            self.run(V1, reconcile=not self.world.feed, view=self.view, view_model="all")
            self.assert_view()
        else:
            self.run(V2, **options)


@pytest.fixture(scope="module")
def scores_of(spark: SparkSession) -> dict[str, list[float]]:
    """Return the scores that each predictor gives the ten published embeddings."""
    rows = spark.createDataFrame(list(enumerate(PUBLISHED)), "id int, e array<float>").orderBy("id")
    v1 = [row[0] for row in rows.select(sa.aesthetic_score_from_embedding("e", predictor=V1)).collect()]
    return {V2: list(PUBLISHED_SCORES), V1: v1}


def made(spark: SparkSession, world: World, folder: Path, scores_of: dict[str, list[float]]) -> Tables:
    """Write the tables of a world, with five rows in the source."""
    base = folder / f"example{next(_number)}"
    base.mkdir()
    tables = Tables(spark, world, base, scores_of)
    first = tables.new(4)
    tables.keys.remove(world.keys[0])
    tables.make({world.keys[0]: 5, **first})
    return tables


@pytest.mark.long
@drawn
@given(world=worlds(steps=[*changing_steps, *other_steps]))
def test_a_scores_table_holds_what_a_dictionary_says(
    spark: SparkSession, tmp_path: Path, scores_of: dict[str, list[float]], world: World
) -> None:
    tables = made(spark, world, tmp_path, scores_of)
    tables.run(V2)
    for step in world.steps:
        tables.do(step)
    tables.run(V1, reconcile=True, view=tables.view, view_model="all")
    tables.assert_view()
    tables.assert_no_stray_files()


@drawn
@given(world=worlds(steps=["append"]))
def test_in_place_a_source_holds_what_a_dictionary_says(
    spark: SparkSession, tmp_path: Path, scores_of: dict[str, list[float]], world: World
) -> None:
    tables = made(spark, world, tmp_path, scores_of)
    done = tables.run_in_place()
    failed = sum(content < 0 for content in tables.rows.values())
    assert (done.rows_read, done.scored, done.failed, done.skipped) == (5, 5 - failed, failed, 0)
    new = tables.new(2)
    tables.append(new)
    failed = sum(content < 0 for content in new.values())
    done = tables.run_in_place()
    assert (done.rows_read, done.scored, done.failed, done.skipped) == (7, 2 - failed, failed, 5)
    tables.run_in_place(retry_failed=True)


SECRET = "SELECT id AS id, salary AS aesthetic_score FROM default.hostile_payroll"
STRANGE_MODELS = {
    "quotes": ["x'", "`", "\\\\", "${env:HOME}@2", "", "a;--b"],
    "SQL": [f"x' UNION ALL {SECRET} -- ", f"x@1' WHERE 1 = 0 UNION ALL {SECRET} -- ", "x' OR '1' = '1"],
    "one suffix": ["my-model@1", "my_model@1", "MY.model@1", "my-model@2"],
    "none": [None],
}


@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("quotes", "SQL") else pytest.param(kind, marks=pytest.mark.long) for kind in STRANGE_MODELS],
)
def test_models_of_other_rows_are_shown_and_never_run(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    """Anybody can write rows to a scores table, with any model name."""
    payroll = spark.createDataFrame([(0, 123456.0)], "id int, salary float")
    payroll.write.format("delta").mode("overwrite").saveAsTable("default.hostile_payroll")
    source, scores, view = str(tmp_path / "source"), str(tmp_path / "scores"), f"hostile_models_{next(_number)}"
    spark.createDataFrame(list(enumerate(PUBLISHED[:3])), "id int, e array<float>").write.format("delta").save(source)
    given = {"source": source, "key": "id", "embedding_col": "e", "scores": scores}
    ours = sa.score_table(spark, **given).model
    schema = "id int, aesthetic_score float, aesthetic_model string"
    others = [(0, 100.0 + at, model) for at, model in enumerate(STRANGE_MODELS[kind])]
    spark.createDataFrame(others, schema).write.format("delta").mode("append").save(scores)
    sa.score_table(spark, **given, view=view, view_model="all")
    shown = spark.table(view)
    assert sorted(row.id for row in shown.collect()) == [0, 1, 2]
    names = [name for name in shown.columns if name.startswith("aesthetic_score")]
    # A row without a model is not shown.
    expected = [score for _, score, model in others if model is not None]
    values = [value for value in shown.where("id = 0").select(*map(quoted, names)).collect()[0] if value is not None]
    assert sorted(values)[1:] == expected
    assert values != []
    assert sa.score_table(spark, **given, retry_failed=True, reconcile=True).skipped == 3
    for model in [name for _, _, name in others if name is not None][:2]:
        sa.score_table(spark, **given, view=view, view_model=model)
        rows = spark.table(view).orderBy("id").collect()
        assert [row.aesthetic_model for row in rows] == [model, None, None]
    assert {row.aesthetic_model for row in spark.read.format("delta").load(scores).collect()} == {
        ours, *(model for _, _, model in others)
    }  # fmt: skip
