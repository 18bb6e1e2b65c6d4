"""The page of scored images: one HTML file that loads nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spark_aesthetic.errors import MissingDependencyError
from spark_aesthetic.visible import visible

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    from spark_aesthetic.images.thumbnails import data_uri, thumbnail
except ImportError as missing:
    raise MissingDependencyError(
        f"a page: expected Jinja2 and Pillow, found: {missing}. Run pip install 'spark-aesthetic[demo,image]'."
    ) from missing

# The longer side of an image on the page, in pixels.
_SIDE = 480


@dataclass(frozen=True)
class ScoredImage:
    """One image of the page.

    Attributes:
        name: The caption.
        image: The bytes of the file, or None.
        score: The score, or None.
        error: Why the score is missing, or None.
    """

    name: str
    image: bytes | None
    score: float | None
    error: str | None

    @property
    def thumbnail(self) -> str | None:
        """A small WebP as a data URI; None if the image has an error."""
        return None if self.error is not None else data_uri(thumbnail(self.image, side=_SIDE)[0])


@dataclass(frozen=True)
class ScoredEmbedding:
    """One row of the table of embeddings: its name and its score."""

    name: str
    score: float


def gallery(
    photographs: Sequence[ScoredImage],
    model: str,
    embeddings: Sequence[ScoredEmbedding],
    embedding_model: str,
    *,
    title: str,
    subtitle: str,
) -> str:
    """Render the page: images from the highest score to the lowest, images without a score, and embeddings.

    Args:
        photographs: The images, in any order.
        model: Their `aesthetic_model`. If it is untrained, the page marks the score of each photograph as untrained.
        embeddings: The scored embeddings, in the order of the page.
        embedding_model: Their `aesthetic_model`.
        title: The heading.
        subtitle: The line below the heading.

    Returns:
        HTML that loads nothing from outside.
    """
    by_score = sorted(photographs, key=lambda photo: (photo.score is None, -(photo.score or 0.0), photo.name))
    return render(
        "gallery.html.jinja",
        photographs=by_score,
        model=model,
        untrained=model.startswith("untrained-"),
        embeddings=embeddings,
        embedding_model=embedding_model,
        title=title,
        subtitle=subtitle,
    )


def render(template: str, **values: object) -> str:
    """Render a template of the package; every text value is escaped and passed through `visible`."""
    pages = Environment(
        loader=PackageLoader("spark_aesthetic.pages"),
        undefined=StrictUndefined,
        autoescape=select_autoescape(default=True),
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    return pages.get_template(template).render(values)
