"""What images cost, which the workers tell beside the scores."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What some images have cost.

    The seconds are those of the workers' threads (see `spark_aesthetic.images.pipeline.Stages`).

    Attributes:
        decode_seconds: To make pixels of files.
        transfer_seconds: To bring pixels to the device.
        infer_seconds: To make scores of pixels.
        wait_seconds: For Spark, which gives rows and takes scores.
        peak_memory_bytes: The most memory that one worker has had resident.
    """

    decode_seconds: float = 0.0
    transfer_seconds: float = 0.0
    infer_seconds: float = 0.0
    wait_seconds: float = 0.0
    peak_memory_bytes: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        """Both together: the sum of the seconds, and the larger peak."""
        both = {name: getattr(self, name) + getattr(other, name) for name in NAMES}
        return Costs(**both | {PEAK: max(self.peak_memory_bytes, other.peak_memory_bytes)})

    @property
    def stages(self) -> dict[str, float]:
        """The seconds by their stage, such as `decode`."""
        return {name.removesuffix("_seconds"): getattr(self, name) for name in NAMES if name != PEAK}


# Columns of doubles beside the score; a high-water mark among sums.
NAMES = tuple(field.name for field in fields(Costs))
PEAK = "peak_memory_bytes"
