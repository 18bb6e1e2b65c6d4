"""The reserved columns and the options of the "webdataset" data source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spark_aesthetic.errors import OptionError, nearest
from spark_aesthetic.options import in_bytes
from spark_aesthetic.webdataset.shards import MAX_SAMPLE_BYTES

KEY, URL, ERROR = "__key__", "__url__", "__error__"

# This column is filled only if the schema contains it. Its values are unique in a shard: shard and key, and a number if
# the key is repeated.
PATH = "__path__"

# The key column of a sidecar.
SIDECAR_KEY = "key"

READ = ("path", "columns", "maxMemberBytes", "metadataOnly", "onDamage", "sidecar", "sidecarKey")
WRITTEN = ("path", "samplesPerShard", "keyCol", "sidecar")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The user's options, or their defaults."""

    path: str
    columns: tuple[str, ...] | None
    metadata_only: bool
    reports: bool
    sidecar: bool
    sidecar_key: str
    samples_per_shard: int
    key_col: str
    max_member_bytes: int

    @classmethod
    def of(cls, given: Any, valid: tuple[str, ...]) -> Options:
        """Parse and check the options.

        Raises:
            OptionError: An option is unknown or its value is out of range.
        """
        by_lower = {name.lower(): name for name in valid}
        for name in given:
            if name.lower() not in by_lower:
                raise OptionError(f"webdataset: no option {name!r}: {nearest(name, valid)}")

        def flag(name: str) -> bool:
            text = str(given.get(name, "false")).lower()
            if text not in ("true", "false"):
                raise OptionError(f"webdataset: {name}={text!r}: expected true or false")
            return text == "true"

        if "path" not in given:
            raise OptionError("webdataset: expected a path, found none. Pass it to load() or save().")
        damage = given.get("onDamage", "fail")
        if damage not in ("fail", "report"):
            raise OptionError(f"webdataset: onDamage={damage!r}: {nearest(damage, ('fail', 'report'))}")
        samples = str(given.get("samplesPerShard", "10000"))
        if not samples.isdecimal() or int(samples) == 0:
            raise OptionError(f"webdataset: samplesPerShard={samples!r}: expected a whole number of at least 1")
        most = in_bytes("webdataset: maxMemberBytes", given.get("maxMemberBytes", "256m"))
        if most > MAX_SAMPLE_BYTES:
            raise OptionError(
                f"webdataset: maxMemberBytes={given['maxMemberBytes']!r}: expected at most "
                f"{MAX_SAMPLE_BYTES >> 20}m, the limit for all files of a sample"
            )
        columns = given.get("columns")
        return cls(
            path=given["path"],
            columns=None if columns is None else tuple(name.strip().lower() for name in columns.split(",")),
            metadata_only=flag("metadataOnly"),
            reports=damage == "report",
            sidecar=flag("sidecar"),
            sidecar_key=given.get("sidecarKey", SIDECAR_KEY),
            samples_per_shard=int(samples),
            key_col=given.get("keyCol", KEY),
            max_member_bytes=most,
        )
