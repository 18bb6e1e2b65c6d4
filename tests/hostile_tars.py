"""Tar files that are damaged or built to do harm. Code makes them, so none is stored."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK = tarfile.BLOCKSIZE


def summed(block: bytearray) -> bytes:
    """Write the correct checksum into a header and return it."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:BLOCK])
    return bytes(block)


def header(
    name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "", field: bytes | None = None
) -> bytes:
    """Return a tar header. If `field` is given, its bytes replace the size."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[-BLOCK:])
    block[124:136] = (b"%011o\0" % size if field is None else field).ljust(12, b"\0")
    return summed(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def member(name: str, content: bytes = b"x", **fields: object) -> bytes:
    return header(name, len(content), **fields) + padded(content)  # type: ignore[arg-type]


def pax(content: bytes, kind: bytes = tarfile.XHDTYPE, size: int | None = None) -> bytes:
    return header("pax", len(content) if size is None else size, kind) + padded(content)


def record(name: str, value: str) -> bytes:
    text = f" {name}={value}\n".encode()
    length = len(text) + 1
    while len(str(length)) + len(text) != length:
        length = len(str(length)) + len(text)
    return str(length).encode() + text


END = bytes(2 * BLOCK)
GOOD = member("good.jpg", b"good") + member("good.txt", b"a caption")
AFTER = member("later.jpg", b"later")
# A reader knows that a sample is whole only when the next one begins.
FRONT = GOOD + member("next.jpg")


def _sizes() -> Iterator[tuple[str, bytes]]:
    fields = {
        "negative": b"-0000000001", "letters": b"many", "decimal": b"99999999999", "two": b"12 34", "nul": b"1\0002",
        "not ascii": b"\xd9\xa3", "base-256 negative": b"\xff" * 12, "base-256 huge": b"\x80" + b"\xff" * 11,
        "base-256 2^62": b"\x80" + (2**62).to_bytes(11, "big"), "base-256 2^63": b"\x80" + (2**63).to_bytes(11, "big"),
        "base-256 2^64 - 1": b"\x80" + (2**64 - 1).to_bytes(11, "big"), "octal, full": b"7" * 12,
    }  # fmt: skip
    for name, field in fields.items():
        for kind in (b"0", b"L", b"K", b"x", b"g", b"V", b"2", b"5"):
            yield f"size {name}, kind {kind.decode()}", FRONT + header("bad.jpg", kind=kind, field=field) + AFTER + END


def _records() -> Iterator[tuple[str, bytes]]:
    digits = "9" * 5000
    for value in ("-5", "abc", "1.5", "", " 5", "+5", "5_0", digits, "0" * 5000, "٣", "1e3", str(2**63), str(2**62)):
        yield f"PAX size={value[:12]}", FRONT + pax(record("size", value)) + AFTER + END
        yield f"global PAX size={value[:12]}", FRONT + pax(record("size", value), tarfile.XGLTYPE) + AFTER + END
    contents = {
        "no length": b"path=x\n", "length of many digits": digits.encode() + b" path=x\n", "length 0": b"0 path=x\n",
        "length 1": b"1 path=x\n", "length past the end": b"99 path=x\n", "no end": b"9 path=xx",
        "no equals": b"8 pathx\n",
        "no name": b"5 =x\n", "not ascii": b"\xff\xfe 9 path=x\n", "blanks": b"    9 path=x\n",
        "digits alone": digits.encode(),
        "length of other digits": "٩ path=x\n".encode(), "negative": b"-9 path=x\n",
    }  # fmt: skip
    for name, content in contents.items():
        yield f"PAX record with {name}", FRONT + pax(content) + AFTER + END
    for kind in (b"x", b"g", b"L", b"K"):
        for size in (2**31, 2**40, 8 << 30):
            block = header("pax", kind=kind, field=b"\x80" + size.to_bytes(11, "big"))
            yield f"kind {kind.decode()} of {size} bytes", FRONT + block + AFTER + END
    yield "many records", FRONT + pax(record("a", "b") * 100_000) + AFTER + END
    yield "many PAX headers", FRONT + pax(record("comment", "x")) * 20_000 + AFTER + END
    yield "many global headers", FRONT + pax(record("path", "x.jpg"), tarfile.XGLTYPE) * 20_000 + AFTER + END
    yield "sparse", FRONT + pax(record("GNU.sparse.major", "1")) + AFTER + END
    yield "a path of 100 kB", FRONT + pax(record("path", "n" * 100_000)) + AFTER + END
    yield "a path with NUL and line feeds", FRONT + pax(record("path", "a\0b\nc.jpg")) + AFTER + END


def _links() -> Iterator[tuple[str, bytes]]:
    chain = [member(f"l{at}.jpg", b"", kind=b"1", link=f"l{at + 1}.jpg") for at in range(2000)]
    yield "a deep chain of links", FRONT + b"".join(chain) + member("l2000.jpg") + END
    yield "a circle of links", FRONT + member("a.jpg", b"", kind=b"2", link="b.jpg") + member(
        "b.jpg", b"", kind=b"2", link="a.jpg"
    ) + AFTER + END  # fmt: skip
    for link in ("/etc/passwd", "../../etc/passwd", "", ".", "..", "a/" * 40, "\n"):
        yield f"a link to {link[:12]!r}", FRONT + member("a.jpg", b"", kind=b"2", link=link) + AFTER + END
    nowhere = [member(f"n{at}.jpg", b"", kind=b"2", link=f"nowhere{at}") for at in range(5000)]
    yield "many links to nowhere", FRONT + b"".join(nowhere) + AFTER + END


def _members() -> Iterator[tuple[str, bytes]]:
    odd = [
        "z.__url__", "z.__key__", "z.__KEY__", "z.__Error__", "z.__path__", "z.__version__", "z.__other__", "z.error",
        "z.image_id", "z.path", "z.a.JPG", "z.jpg", "z.JPG", "z.\u017feg.txt", "z.seg.txt", "z.K.txt", "z.k.txt",
        "z.a b.txt", "z.a,b=c.txt", "z..jpg", "z.`.txt", "z.a/../b.txt", "/abs.jpg", "../up.jpg", "z. ",
        "z.\\x.jpg",
    ]  # fmt: skip
    yield "odd names", FRONT + b"".join(member(name, name.encode()) for name in odd) + AFTER + END
    many = b"".join(member(f"m.{at}.txt") for at in range(20_000))
    yield "a sample of many files", FRONT + many + AFTER + END
    apart = b"".join(member(f"{'ab'[at % 2]}.{at}.txt") for at in range(20_000))
    yield "two samples in many parts", FRONT + apart + AFTER + END
    yield "no end", FRONT + AFTER
    yield "something behind the end", FRONT + END + b"a signature" * 100
    yield "zeros", FRONT + bytes(4 << 20)
    yield "nothing", b""
    yield "text", b"no tar file" * 1000


def hostile() -> dict[str, bytes]:
    """Return all hostile tars by their description. All except the last two begin with a whole sample."""
    return {name: content for part in (_sizes, _records, _links, _members) for name, content in part()}


def bomb(path: Path, size: int, *, extension: str = "jpg", opened: Callable[..., io.IOBase] = gzip.open) -> None:
    """Write a compressed shard with a file of zeros between two whole samples."""
    piece = bytes(1 << 20)
    with opened(path, "wb") as file:  # type: ignore[call-arg]
        file.write(GOOD + header(f"bomb.{extension}", field=b"\x80" + size.to_bytes(11, "big")))
        for _ in range(size >> 20):
            file.write(piece)
        file.write(AFTER + END)


def mutated(seed: int, bases: list[bytes]) -> bytes:
    """Return one of `bases` with bytes changed, removed, repeated or cut off, half of the time with valid checksums."""
    chance = random.Random(seed)
    content = bytearray(chance.choice(bases))
    for _ in range(chance.randint(1, 8)):
        if not content:
            break
        at = chance.randrange(len(content))
        what = chance.randrange(6)
        if what == 0:
            content[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            content[at : at + chance.randint(1, 16)] = chance.randbytes(chance.randint(1, 16))
        elif what == 2:
            del content[at : at + chance.choice((1, 100, BLOCK))]
        elif what == 3:
            block = at // BLOCK * BLOCK
            content[block:block] = content[block : block + BLOCK * chance.randint(1, 4)]
        elif what == 4:
            # At these offsets a header has its size, kind, link, magic and prefix.
            block = at // BLOCK * BLOCK
            place = chance.choice((124, 135, 156, 157, 257, 345))
            content[block + place : block + place + 4] = chance.choice(
                (b"-777", b"\xff" * 4, b"\x80\0\0\0", b"xgLK", b"12MS")
            )
        else:
            del content[at:]
    if chance.random() < 0.5:
        for block in range(0, len(content) - BLOCK + 1, BLOCK):
            if content[block + 257 : block + 262] == b"ustar":
                content[block : block + BLOCK] = summed(content[block : block + BLOCK])
    return bytes(content)


# Bad keys name a different place, or a terminal or a reader mistakes them for something else. Good keys are only
# unusual.
BAD_KEYS = [
    "../../etc/cron.d/x", "/abs", "a/../b", "a/./b", "..", ".", "", "a//b", "a/", "line\nfeed", "line\r", "a\0b",
    "tab\t", "\x1b[2J", "\x9b2J", "back\\slash", "..\\..\\x", "C:/x", "c:x", "line\u2028break", "turned\u202ejpg",
    "\u2066x", "\u200fא", "a\u200eb", "a\u061cb",
    ".. /x", ". ./x", " ", "  ", "\ud800", "n" * 1001, "__notes__/x", "a.b",
]  # fmt: skip
GOOD_KEYS = ["a", "x.y/z", "a..b/c", "ü b/c-1", "__x__", "\U0001f600" * 250, "n" * 1000, "a b ", "ab:c", "א"]
