"""The packages that only images need, so that embeddings can be scored without them."""

from __future__ import annotations

from importlib.util import find_spec

# By the name that is imported: those of the extra "image" that scoring an image uses.
_FOR_IMAGES = ("torch", "torchvision", "open_clip", "PIL", "simplejpeg", "blake3")


def missing_for_images() -> list[str]:
    """Return the packages that images need and that are not installed here, by the name that is imported."""
    return [name for name in _FOR_IMAGES if find_spec(name) is None]
