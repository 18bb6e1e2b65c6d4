"""The exception for an image file that is not decoded."""

from __future__ import annotations


class Refused(Exception):  # noqa: N818  # it carries the reason of one row out of nested readers
    """A file that is not decoded. The message is a reason without figures, such as `damaged JPEG`."""
