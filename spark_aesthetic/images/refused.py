"""Why an image file has no pixels."""

from __future__ import annotations


class Refused(Exception):  # noqa: N818  # a value on its way out of nested readers, for one row: no error of ours
    """A file that is not decoded, for a reason without figures, such as `damaged JPEG`."""
