"""The page of `review`: one HTML file that loads nothing from outside."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from hashlib import sha256
from importlib import resources

from spark_aesthetic.curation.models import is_untrained
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.pages.gallery import render
from spark_aesthetic.pages.sampling import Hundredths, Sample, readable_width

_MAX_BARS, _MAX_TICKS = 120, 12


@dataclass(frozen=True)
class Tile:
    """One image of the page.

    Attributes:
        key: Values of the key columns, as text.
        score: The score, as text that parses to the same number.
        bin: The score in whole hundredths.
        band: The number of the image's band.
        thumbnail: WebP as a data URI, or None.
        reason: Why the thumbnail is missing, or None.
    """

    key: list[str]
    score: str
    bin: int
    band: int
    thumbnail: str | None
    reason: str | None


def review_page(
    tiles: Sequence[Tile], sample: Sample, *, key: Sequence[str], score_col: str, source: str | None
) -> str:
    """Render the page as HTML.

    Args:
        tiles: The images, from the highest score to the lowest.
        sample: The rows of these images, and the histogram of all scores.
        key: Names of the key columns.
        score_col: Name of the column of scores.
        source: The origin of the rows, to show on the page, or None.
    """
    # The browser stores labels under this hash. A page that is created again with the same images and scores therefore
    # finds them, and a page with different ones does not.
    content = json.dumps([sample.model, list(key), [(tile.key, tile.score) for tile in tiles]])
    histogram = sample.histogram
    tick = readable_width(len(histogram.counts), _MAX_TICKS)
    low = histogram.first // tick * tick
    high = -(-(histogram.first + len(histogram.counts)) // tick) * tick
    shown = [(band, [tile for tile in tiles if tile.band == at]) for at, band in enumerate(sample.bands)]
    script, style = (_text(f"review.{kind}") for kind in ("js", "css"))
    return render(
        "review.html.jinja",
        about={
            "id": sha256(content.encode()).hexdigest()[:12],
            "key": list(key),
            "score": quoted(score_col) if not score_col.isidentifier() else score_col,
            # For Spark, the literal 5.10 is greater than the FLOAT 5.1, so the literal needs the scores' type.
            "suffix": "F" if sample.is_float else "",
            "cut": min(max(sample.cut, low), high),
            "first": histogram.first,
            "counts": histogram.counts,
        },
        bands=[(band, inside) for band, inside in reversed(shown) if inside],
        bars=_bars(histogram, low),
        axis=range(low, high + 1, tick),
        rows=histogram.rows,
        shown=len(tiles),
        unscored=sample.unscored,
        without_picture=without_picture(tiles),
        model=sample.model,
        untrained=is_untrained(sample.model),
        seed=sample.seed,
        source=source,
        made_at=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        script=script,
        script_hash=_csp_hash(script),
        style=style,
        style_hash=_csp_hash(style),
    )


def _bars(histogram: Hundredths, low: int) -> str:
    """Draw the histogram as an SVG path: x is hundredths above `low`, y is 100 minus per cent of the highest bar."""
    width = readable_width(len(histogram.counts), _MAX_BARS)
    start = histogram.first // width * width
    lefts = range(start, histogram.first + len(histogram.counts), width)
    heights = [histogram.between(left, left + width) for left in lefts]
    return "".join(
        # The least height of 1 keeps a bar with few rows visible.
        f"M{left - low} 100V{100 - max(100 * rows / max(heights), 1):.1f}h{width}V100Z"
        for left, rows in zip(lefts, heights, strict=True)
        if rows
    )


def without_picture(tiles: Sequence[Tile]) -> dict[str, int]:
    """Count the tiles without a thumbnail, by reason."""
    return dict(sorted(Counter(tile.reason for tile in tiles if tile.reason is not None).items()))


def _text(name: str) -> str:
    return (resources.files("spark_aesthetic.pages") / "templates" / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    """Return the hash by which a Content-Security-Policy allows an inline script or style."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
