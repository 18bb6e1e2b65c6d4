"""Recognise the format of an image file by its first bytes."""

from __future__ import annotations

import re

# Only these decoders of Pillow are used. Its other decoders are rare or unsafe (EPS runs Ghostscript).
READ = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# Larger Exif data are dropped, because decoders read them completely. Smaller ones are kept for the orientation.
MAX_EXIF_BYTES = 65_536

# Offset, bytes, name, file extension. The first row that matches decides, because several formats begin like TIFF.
_MAGIC = (
    (0, b"\xff\xd8\xff\xf7", "JPEG-LS", "jls"),
    (0, b"\xff\xd8\xff", "JPEG", "jpg"),
    (0, b"\x89PNG", "PNG", "png"),
    (0, b"GIF8", "GIF", "gif"),
    (8, b"CR\x02\x00", "CR2", "cr2"),
    (0, b"II*\x00", "TIFF", "tiff"),
    (0, b"MM\x00*", "TIFF", "tiff"),
    (0, b"II\x00*", "TIFF", "tiff"),
    (0, b"MM*\x00", "TIFF", "tiff"),
    (0, b"II+\x00", "TIFF", "tiff"),
    (0, b"MM\x00+", "TIFF", "tiff"),
    (0, b"\xff\x0a", "JPEG XL", "jxl"),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL", "jxl"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000", "jp2"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000", "j2k"),
    (0, b"II\xbc\x01", "JPEG XR", "jxr"),
    (0, b"8BPS", "PSD", "psd"),
    (0, b"%PDF-", "PDF", "pdf"),
    (0, b"%!PS", "PostScript", "ps"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript", "eps"),
    (0, b"\x00\x00\x01\x00", "ICO", "ico"),
    (0, b"icns", "ICNS", "icns"),
    (0, b"gimp xcf", "XCF", "xcf"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR", "exr"),
    (0, b"#?RADIANCE", "Radiance HDR", "hdr"),
    (0, b"#?RGBE", "Radiance HDR", "hdr"),
    (0, b"DDS ", "DDS", "dds"),
    (0, b"qoif", "QOI", "qoi"),
    (0, b"FLIF", "FLIF", "flif"),
    (0, b"SDPX", "DPX", "dpx"),
    (0, b"XPDS", "DPX", "dpx"),
    # The last two bytes are the number of pictures, which is nearly always one. A TGA file also begins with the first
    # four bytes, but then has zeros.
    (0, b"\x00\x00\x02\x00\x01\x00", "CUR", "cur"),
    (0, b"\x8aMNG", "MNG", "mng"),
    (0, b"\x8bJNG", "JNG", "jng"),
    (0, b"AT&TFORM", "DjVu", "djvu"),
    (0, b"FUJIFILMCCD-RAW", "RAF", "raf"),
    (0, b"IIRO", "ORF", "orf"),
    (0, b"IIRS", "ORF", "orf"),
    (0, b"MMOR", "ORF", "orf"),
    (0, b"IIU\x00", "RW2", "rw2"),
    (0, b"FOVb", "X3F", "x3f"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF", "wmf"),
    (40, b" EMF", "EMF", "emf"),
    (0, b"SIMPLE  =", "FITS", "fits"),
    (128, b"DICM", "DICOM", "dcm"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska", "mkv"),
    (0, b"FLV\x01", "FLV", "flv"),
    (0, b"\x1f\x8b\x08", "gzip", "gz"),
    (0, b"PK\x03\x04", "ZIP", "zip"),
    (0, b"BM", "BMP", "bmp"),
)

_RIFF = {b"WEBP": ("WEBP", "webp"), b"AVI ": ("AVI", "avi")}

# Brands of ISO files that are images. A file of an unknown brand is reported as MP4.
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"heif", b"avci", b"avcs", b"jpeg")
# These brands name only the container. The file's compatible brands name the codec.
_ANY_HEIF = (b"mif1", b"mif2", b"msf1", b"miaf")

_NETPBM = {b"1": "PBM", b"4": "PBM", b"2": "PGM", b"5": "PGM", b"3": "PPM", b"6": "PPM", b"7": "PAM"}
_NETPBM_START = re.compile(rb"P([1-7])\s")

# Plain or run-length coded, with one or two bytes per value, and with one to three dimensions.
_SGI_START = re.compile(rb"\x01\xda[\0\1][\1\2]\0[\1-\3]")

# An <svg> element may follow a declaration, comments and a doctype, but does not count inside an HTML page.
_SVG_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml|<!--|<!DOCTYPE\s+svg|<(?:svg:)?svg[\s>])", re.IGNORECASE)
_SVG = re.compile(rb"<(?:svg:)?svg[\s>]", re.IGNORECASE)
_SVG_WITHIN = 4096


def sniff(data: bytes) -> str | None:
    r"""Return the format of an image file by its first bytes; None if unknown. Names in `READ` are Pillow's.

    Examples:
        >>> sniff(b"GIF89a"), sniff(b"\x00\x00\x00\x18ftypheic"), sniff(b"hello")
        ('GIF', 'HEIF', None)
    """
    return _known(data)[0]


def extension(data: bytes) -> str:
    r"""Return the extension of a file with these bytes; "bin" if the format is unknown.

    Examples:
        >>> extension(b"\xff\xd8\xff\xe0"), extension(b"GIF89a"), extension(b"hello")
        ('jpg', 'gif', 'bin')
    """
    return _known(data)[1]


def _known(data: bytes) -> tuple[str | None, str]:
    for at, magic, name, ending in _MAGIC:
        if data[at : at + len(magic)] == magic:
            return name, ending
    if data[:4] == b"RIFF" or data[8:12] == b"WEBP":
        return _RIFF.get(bytes(data[8:12]), (None, "bin"))
    if data[4:8] == b"ftyp":
        return _iso(data)
    if found := _NETPBM_START.match(data):
        name = _NETPBM[found[1]]
        return name, name.lower()
    if _SGI_START.match(data):
        return "SGI", "sgi"
    if _SVG_START.match(data) and _SVG.search(data, 0, _SVG_WITHIN):
        return "SVG", "svg"
    return None, "bin"


def _iso(data: bytes) -> tuple[str, str]:
    brand = bytes(data[8:12])
    end = min(int.from_bytes(data[:4], "big"), 1024)
    brands = [brand] + [bytes(data[at : at + 4]) for at in range(16, end - 3, 4)] * (brand in _ANY_HEIF)
    if any(each in (b"avif", b"avis") for each in brands):
        return "AVIF", "avif"
    if brand in _HEIF or brand in _ANY_HEIF:
        return "HEIF", "heic"
    if brand == b"crx ":
        return "CR3", "cr3"
    return "MP4", "mp4"
