"""The cost of scoring images, which workers return as columns next to the scores."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Time and memory that scoring some images took.

    Seconds are summed over the workers' threads (see `spark_aesthetic.images.pipeline.Stages`).

    Attributes:
        decode_seconds: Decoding files to pixels.
        transfer_seconds: Moving pixels to the device.
        infer_seconds: Computing scores from pixels.
        wait_seconds: Waiting for rows from Spark.
        peak_memory_bytes: Peak resident memory of one worker.
    """

    decode_seconds: float = 0.0
    transfer_seconds: float = 0.0
    infer_seconds: float = 0.0
    wait_seconds: float = 0.0
    peak_memory_bytes: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        """Add the seconds, and keep the larger peak."""
        both = {name: getattr(self, name) + getattr(other, name) for name in NAMES}
        return Costs(**both | {PEAK: max(self.peak_memory_bytes, other.peak_memory_bytes)})

    @property
    def stages(self) -> dict[str, float]:
        """Seconds by stage, such as `decode`."""
        return {name.removesuffix("_seconds"): getattr(self, name) for name in NAMES if name != PEAK}


# The names of the cost columns, which are all doubles. PEAK is combined by maximum, every other column by sum.
NAMES = tuple(field.name for field in fields(Costs))
PEAK = "peak_memory_bytes"
