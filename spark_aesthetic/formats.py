"""How the bytes of an image file begin."""

from __future__ import annotations

_MAGIC = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (4, b"ftypavi", "AVIF"),
)


def sniff(data: bytes) -> str | None:
    """The format of an image file by its first bytes, in Pillow's name; None where it is none of these.

    Examples:
        >>> sniff(b"GIF89a"), sniff(b"hello")
        ('GIF', None)
    """
    return next((name for at, magic, name in _MAGIC if data[at : at + len(magic)] == magic), None)


def extension(data: bytes) -> str:
    r"""How a file of these bytes is called; "bin" where nobody knows.

    Examples:
        >>> extension(b"\xff\xd8\xff\xe0"), extension(b"GIF89a"), extension(b"hello")
        ('jpg', 'gif', 'bin')
    """
    found = sniff(data)
    return "bin" if found is None else "jpg" if found == "JPEG" else found.lower()
