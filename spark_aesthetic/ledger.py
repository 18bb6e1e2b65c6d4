"""What a scores table knows of its sources, kept among its properties."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from pyspark.sql import SparkSession

from spark_aesthetic.commits import committed, properties
from spark_aesthetic.scores import Target

# In front of every name of ours among the properties of a scores table.
_PROPERTY = "spark_aesthetic."


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a model has come with a source; kept among the properties of the scores table.

    Attributes:
        checkpoint: Name of the checkpoint's folder; another one for each beginning.
        generation: A number that grows with each beginning, so that Delta refuses chunks of an earlier one.
        began_empty: The model had no row here before its first chunk, so the next ones of the beginning meet none.
        feed: The source's change data feed is read, not its files.
        starting_version: Of the source; None is all of its rows at the beginning and what comes after.
        backbone: What the embeddings of this model depend on.
        location: The source's folder: a table made anew there is another one to Delta, and the same to its users.
        comparing: A comparison of keys has begun, and has not ended.
    """

    checkpoint: str
    generation: int
    began_empty: bool
    feed: bool
    starting_version: int | None
    backbone: str
    location: str
    comparing: bool = False


def load_progress(spark: SparkSession, target: Target) -> dict[str, Progress]:
    """What is known of each source of the model, by the source's id."""
    start = _property(target.model, "")
    known = properties(spark, target.identifier).items()
    return {name.removeprefix(start): Progress(**json.loads(text)) for name, text in known if name.startswith(start)}


def save_progress(spark: SparkSession, target: Target, changed: dict[str, Progress]) -> None:
    """Keep what is known of sources. A chunk that another run is writing then fails to commit."""
    values = ", ".join(
        f"'{_property(target.model, source)}' = '{json.dumps(asdict(progress))}'"
        for source, progress in changed.items()
    )
    committed(lambda: spark.sql(f"ALTER TABLE {target.identifier} SET TBLPROPERTIES ({values})"))


def forget_progress(spark: SparkSession, target: Target, sources: Iterable[str]) -> None:
    """Know nothing of some sources any more."""
    names = ", ".join(f"'{_property(target.model, source)}'" for source in sources)
    if names:
        committed(lambda: spark.sql(f"ALTER TABLE {target.identifier} UNSET TBLPROPERTIES IF EXISTS ({names})"))


def end_beginnings(spark: SparkSession, target: Target) -> None:
    """Let the streams of a model know that rows of it come from elsewhere too; one at a commit has to look again."""
    known = load_progress(spark, target)
    told = {source: replace(progress, began_empty=False) for source, progress in known.items() if progress.began_empty}
    if told:
        save_progress(spark, target, told)


def backbones(spark: SparkSession, table: str) -> dict[str, str]:
    """What the embeddings of each model here depend on."""
    found = {}
    for name, text in properties(spark, table).items():
        if name.startswith(_PROPERTY):
            model = name.removeprefix(_PROPERTY).rpartition("/")[0]
            found[model] = str(json.loads(text)["backbone"])
    return found


def _property(model: str, source_id: str) -> str:
    return f"{_PROPERTY}{model}/{source_id}"
