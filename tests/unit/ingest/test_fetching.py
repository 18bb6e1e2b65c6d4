"""Hostile addresses and servers cost only their own row, within bounds of time and memory. No test needs Spark."""

from __future__ import annotations

import gzip
import os
import socketserver
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pytest
from conftest import free_port

from spark_aesthetic.ingest import fetching
from spark_aesthetic.ingest.allowed import Allowed
from spark_aesthetic.ingest.pace import Limits
from spark_aesthetic.testing import noise_image

IMAGE = noise_image(1)
MIB = 1 << 20
# A patience of three seconds keeps the tests quick.
LIMITS = Limits(file_bytes=4 * MIB, patience_s=3, total_s=10)


class Hostile(socketserver.StreamRequestHandler):
    """A server that runs the method named by the path, for one request per connection."""

    asked: ClassVar[list[str]] = []

    def handle(self) -> None:
        try:
            asked = self.rfile.readline()
            if not asked.startswith(b"GET "):
                self.wfile.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                return
            self.path = asked.split()[1].decode()
            while self.rfile.readline().strip():
                pass
            self.asked.append(self.path)
            url = urlsplit(self.path)
            getattr(self, url.path.strip("/").partition("/")[0].replace("-", "_"))(parse_qs(url.query))
        # The client has hung up.
        except OSError:
            pass

    def say(self, *lines: str, body: bytes = b"") -> None:
        self.wfile.write("\r\n".join(["HTTP/1.1 200 OK", *lines, "Connection: close", "", ""]).encode() + body)

    def image(self, _: dict[str, list[str]]) -> None:
        self.say(f"Content-Length: {len(IMAGE)}", body=IMAGE)

    def page(self, _: dict[str, list[str]]) -> None:
        self.say(body=b"root:x:0:0:root:/root:/bin/bash\n")

    def status(self, query: dict[str, list[str]]) -> None:
        self.wfile.write(f"HTTP/1.1 {query['of'][0]} So\r\nConnection: close\r\n\r\n".encode())

    def to(self, query: dict[str, list[str]]) -> None:
        place = query["place"][0]
        self.wfile.write(f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nConnection: close\r\n\r\n".encode())

    def loop(self, _: dict[str, list[str]]) -> None:
        self.to({"place": [f"/loop/{len(self.asked)}"]})

    def drip(self, _: dict[str, list[str]]) -> None:
        self.say("Content-Length: 100000")
        self.trickle(b"x")

    def drip_head(self, _: dict[str, list[str]]) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self.trickle(b"y")

    def trickle(self, piece: bytes, pause: float = 0.1) -> None:
        for _ in range(500):
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(pause)

    def continues(self, _: dict[str, list[str]]) -> None:
        self.trickle(b"HTTP/1.1 100 Continue\r\n\r\n", 0.01)

    def flows(self, query: dict[str, list[str]]) -> None:
        size, pieces, pause = (float(query[name][0]) for name in ("size", "pieces", "pause"))
        self.say(f"Content-Length: {int(size * pieces)}")
        for _ in range(int(pieces)):
            self.wfile.write(b"x" * int(size))
            time.sleep(pause)

    def silent(self, _: dict[str, list[str]]) -> None:
        self.rfile.read()

    def falls_silent(self, _: dict[str, list[str]]) -> None:
        self.say("Content-Length: 1000000", body=IMAGE)
        self.rfile.read()

    def short(self, _: dict[str, list[str]]) -> None:
        self.say(f"Content-Length: {len(IMAGE) + 1}", body=IMAGE)

    def more_than_said(self, _: dict[str, list[str]]) -> None:
        self.say(f"Content-Length: {len(IMAGE)}", body=IMAGE + b"x" * 1000)

    def odd_length(self, _: dict[str, list[str]]) -> None:
        self.say("Content-Length: -5", body=IMAGE)

    def chunk_cut(self, _: dict[str, list[str]]) -> None:
        self.say("Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n" % (len(IMAGE), IMAGE))

    def chunked(self, _: dict[str, list[str]]) -> None:
        self.say("Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(IMAGE), IMAGE))

    def closes(self, _: dict[str, list[str]]) -> None:
        """Close the connection without an answer."""

    def garbage(self, _: dict[str, list[str]]) -> None:
        self.wfile.write(b"\xff\xd8\xff\xe0 this is no HTTP\r\n\r\n")

    def headers(self, _: dict[str, list[str]]) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for at in range(200_000):
            self.wfile.write(b"X-%d: y\r\n" % at)

    def long_header(self, _: dict[str, list[str]]) -> None:
        self.say("X: " + "y" * MIB, body=IMAGE)

    def endless(self, _: dict[str, list[str]]) -> None:
        self.say()
        while True:
            self.wfile.write(b"\xff\xd8\xff\xe0" * 16384)

    def large(self, _: dict[str, list[str]]) -> None:
        self.say(f"Content-Length: {1 << 40}")
        self.rfile.read()

    def packed(self, query: dict[str, list[str]]) -> None:
        pack = {"gzip": gzip.compress, "deflate": zlib.compress}.get(query["as"][0], bytes)
        data = pack(IMAGE)
        data = data[:-20] if "cut" in query else data
        self.say(f"Content-Encoding: {query['as'][0]}", f"Content-Length: {len(data)}", body=data)

    def bomb(self, _: dict[str, list[str]]) -> None:
        self.say("Content-Encoding: gzip", body=BOMB)


# The bomb has 2.3 MB, which is below the limit of a file, and expands to 512 MiB.
_packer = zlib.compressobj(1, wbits=31)
BOMB = b"".join(_packer.compress(bytes(16 * MIB)) for _ in range(32)) + _packer.flush()


class Threaded(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128


@pytest.fixture
def server() -> Iterator[str]:
    Hostile.asked.clear()
    with Threaded(("127.0.0.1", 0), Hostile) as served:
        threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()


def fetched(*addresses: str, allow: list[str], limits: Limits = LIMITS) -> dict[str, bytes | str]:
    batches = iter([pa.RecordBatch.from_pydict({"path": list(addresses)})])
    rows = [
        row
        for batch in fetching.fetch_all(batches, Allowed.of(allow), limits, images_only=True)
        for row in batch.to_pylist()
    ]
    assert sorted(row["path"] for row in rows) == sorted(addresses)
    assert all((row["image"] is None) == (row["error"] is not None) for row in rows)
    return {row["path"]: row["error"] if row["image"] is None else row["image"] for row in rows}


SAID = {
    "image": IMAGE, "chunked": IMAGE, "packed?as=gzip": IMAGE, "packed?as=deflate": IMAGE,
    "packed?as=identity": IMAGE, "to?place=/image": IMAGE, "to?place=image?again": IMAGE,
    "page": "decode: not an image", "status?of=404": "fetch: HTTP 404", "status?of=403": "fetch: HTTP 403",
    "status?of=500": "fetch: HTTP 500", "status?of=204": "fetch: HTTP 204", "status?of=206": "fetch: HTTP 206",
    "status?of=304": "fetch: HTTP 304", "status?of=302": "fetch: HTTP 302", "loop": "fetch: too many redirects",
    "silent": "fetch: timed out", "falls-silent": "fetch: timed out", "drip-head": "fetch: timed out",
    "continues": "fetch: timed out", "drip": "fetch: too slow", "short": "fetch: connection cut off",
    "chunk-cut": "fetch: connection cut off", "closes": "fetch: connection cut off",
    "packed?as=gzip&cut=1": "fetch: connection cut off", "packed?as=br": "fetch: malformed answer",
    "odd-length": "fetch: malformed answer", "garbage": "fetch: malformed answer",
    "headers": "fetch: malformed answer", "long-header": "fetch: malformed answer",
    "endless": "fetch: more bytes than max_file_bytes", "large": "fetch: more bytes than max_file_bytes",
    "bomb": "fetch: more bytes than max_file_bytes",
    "to?place=file:///etc/passwd": "fetch: refused address", "to?place=ftp://127.0.0.1/x": "fetch: refused address",
    "to?place=http://127.0.0.1:1/x": "fetch: refused address", "to?place=http://localhost/": "fetch: refused address",
    "to?place=http://169.254.169.254/latest/": "fetch: refused address",
    "to?place=//127.0.0.1:1/": "fetch: refused address",
    "to?place=http://x@127.0.0.1/": "fetch: refused address", "to?place=data:,x": "fetch: refused address",
    "to?place=http://93.184.216.34/": "fetch: refused address", "to?place=/\\127.0.0.1/": "fetch: refused address",
    "to?place=http://[%3A:1": "fetch: malformed answer",
}  # fmt: skip


def test_what_a_server_does_is_the_reason_of_its_row_alone(server: str) -> None:
    started = time.monotonic()
    found = fetched(*[f"{server}/{name}" for name in [*SAID, "more-than-said"]], allow=[f"{server}/"])
    # The result depends on when the additional bytes arrive.
    assert found.pop(f"{server}/more-than-said") in (IMAGE, "fetch: malformed answer")
    assert {name.removeprefix(f"{server}/"): what for name, what in found.items()} == SAID
    assert time.monotonic() - started < 20


def test_without_a_prefix_no_server_on_loopback_hears_of_it(server: str) -> None:
    port = server.rpartition(":")[2]
    hosts = ("127.0.0.1", "localhost", "LOCALHOST.", "[::1]", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f000001")
    addresses = [f"http://{host}:{port}/image" for host in hosts]
    for allow in ([], ["http://"], ["https://", "http://"], ["http://127.0.0.1:1/"], ["s3://bucket/"]):
        assert set(fetched(*addresses, allow=allow).values()) == {"fetch: refused address"}
    assert Hostile.asked == []


def test_names_are_checked_after_they_are_resolved(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    real, asked = socket.getaddrinfo, []

    # This function answers like an attacker's name server, so no test asks a real one.
    def resolved(host: str, *args: object, **options: object) -> object:
        asked.append(host)
        return real("127.0.0.1" if host == "rebound.example" else host, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    port = server.rpartition(":")[2]
    address = f"http://rebound.example:{port}/image"
    for allow in ([], ["http://"], [f"http://rebound.example:{port}/"], ["http://", f"{server}/"]):
        assert fetched(address, allow=allow) == {address: "fetch: refused address"}
    assert Hostile.asked == []
    assert "rebound.example" in asked
    both = [f"http://rebound.example:{port}/", f"{server}/"]
    assert fetched(address, allow=both) == {address: IMAGE}
    local = f"http://localhost:{port}/image"
    assert fetched(local, allow=[f"http://localhost:{port}/"]) == {local: IMAGE}
    # A redirect to such a name is refused too.
    led = f"{server}/to?place={address}"
    assert fetched(led, allow=[f"{server}/", f"http://rebound.example:{port}/x"]) == {led: "fetch: refused address"}


def test_a_redirect_leaves_no_prefix(server: str) -> None:
    allow = [f"{server}/to", f"{server}/image/"]
    places = {
        "/image/a": IMAGE, "/image/../page": "fetch: refused address", "/page": "fetch: refused address",
        "/image/%2e%2e/page": "fetch: refused address", "/image/%25252e%25252e/page": "fetch: refused address",
        "/image/..%252fpage": "fetch: refused address",
    }  # fmt: skip
    found = fetched(*[f"{server}/to?place={place}" for place in places], allow=allow)
    assert [found[f"{server}/to?place={place}"] for place in places] == list(places.values())


def test_a_dead_server_is_a_connection_that_failed() -> None:
    dead = f"http://127.0.0.1:{free_port()}/"
    assert fetched(f"{dead}a", allow=[dead]) == {f"{dead}a": "fetch: connection failed"}
    tls = dead.replace("http", "https")
    assert fetched(f"{tls}a", allow=[tls]) == {f"{tls}a": "fetch: connection failed"}


def test_tls_that_is_none_is_told(server: str) -> None:
    secure = server.replace("http", "https")
    assert fetched(f"{secure}/image", allow=[f"{secure}/"]) == {f"{secure}/image": "fetch: TLS failed"}


def test_slow_servers_hold_up_no_neighbour(server: str) -> None:
    limits = Limits(file_bytes=MIB, patience_s=8, slow_s=0.3)
    slow = [f"{server}/{'drip' if at % 2 else 'silent'}/{at}" for at in range(10)]
    quick = [f"{server.replace('127.0.0.1', 'localhost')}/image/{at}" for at in range(200)]
    batches = iter([pa.RecordBatch.from_pydict({"path": slow + quick})])
    started, came = time.monotonic(), {}
    addresses = (path for batch in batches for path in batch.column("path").to_pylist())
    allowed = Allowed.of([f"{server}/", server.replace("127.0.0.1", "localhost") + "/"])
    with fetching.Fetcher(allowed, limits) as fetcher:
        for address, found in fetcher.results(addresses):
            came[address] = (time.monotonic() - started, found)
    assert {found for _, found in map(came.get, quick)} == {IMAGE}  # type: ignore[misc]
    assert {found for _, found in map(came.get, slow)} == {"fetch: too slow", "fetch: timed out"}  # type: ignore[misc]
    assert max(came[address][0] for address in quick) < 7 < min(came[address][0] for address in slow)
    assert max(came[address][0] for address in slow) < 16


def test_memory_is_bounded_and_nobody_is_blamed_for_waiting(server: str) -> None:
    # The memory has room for fewer than two images, and the patience is enough for a busy machine.
    limits = Limits(file_bytes=MIB, patience_s=20, held_bytes=len(IMAGE) * 3 // 2)
    held = []
    room = fetching._Room

    class Watched(room):  # type: ignore[misc, valid-type]
        def take(self, number: int, size: int) -> bool:
            may = bool(super().take(number, size))
            held.append(sum(self._held.values()))
            return may

    fetching._Room = Watched  # type: ignore[misc]
    try:
        addresses = [f"{server}/image/{at}" for at in range(40)]
        assert set(fetched(*addresses, allow=[f"{server}/"], limits=limits).values()) == {IMAGE}
    finally:
        fetching._Room = room  # type: ignore[misc]
    assert max(held) <= limits.held_bytes + len(IMAGE)


def test_slow_servers_in_front_keep_no_file_waiting_for_memory(server: str) -> None:
    # The slow servers send at twice the least rate for longer than `total_s`. The memory has room for three of the
    # eight files.
    slow = [f"{server}/flows/{at}?size=2000&pieces=200&pause=0.1" for at in range(3)]
    files = [f"{server}/flows/{at}?size=20000&pieces=30&pause=0.01" for at in range(8)]
    limits = Limits(file_bytes=MIB, patience_s=5, least_rate=10_000, total_s=6, held_bytes=2_000_000, slow_s=0.3)
    with fetching.Fetcher(Allowed.of([f"{server}/"]), limits) as fetcher:
        came = list(fetcher.results(iter(slow + files)))
    assert {address for address, _ in came[:8]} == set(files)
    assert {len(found) for _, found in came[:8]} == {600_000}
    assert {found for _, found in came[8:]} == {"fetch: too slow"}


def test_a_local_file_is_read_below_its_prefix_by_all_of_its_links(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside / "sub", outside):
        folder.mkdir(parents=True)
    for place in (inside / "a b.jpg", inside / "2%20.jpg", outside / "secret.jpg", tmp_path / "in-private.jpg"):
        place.write_bytes(IMAGE)
    (inside / "notes.txt").write_bytes(b"secret")
    (inside / "to file.jpg").symlink_to(outside / "secret.jpg")
    (inside / "to folder").symlink_to(outside)
    (inside / "up").symlink_to("..")
    (inside / "within.jpg").symlink_to("a b.jpg")
    (inside / "dangling.jpg").symlink_to("nowhere.jpg")
    (inside / "itself.jpg").symlink_to("itself.jpg")
    (inside / "relative.jpg").symlink_to("../out/secret.jpg")
    (tmp_path / "link").symlink_to(inside)
    os.mkfifo(inside / "pipe")
    refused, missing = "fetch: refused address", "fetch: not found"
    expected: dict[str, bytes | str] = {
        f"{inside}/a b.jpg": IMAGE, f"file:{inside}/a%20b.jpg": IMAGE, f"file://{inside}/a b.jpg": IMAGE,
        f"file:{inside}/2%20.jpg": IMAGE, f"{inside}/sub/../a b.jpg": IMAGE, f"{inside}/within.jpg": IMAGE,
        f"{inside}/notes.txt": "decode: not an image", f"{inside}/none.jpg": missing, f"{inside}/a%20b.jpg": missing,
        f"file:{inside}/n%20e.jpg": missing, f"{inside}/dangling.jpg": missing, f"{inside}/sub": "fetch: not a file",
        f"{inside}/pipe": "fetch: not a file", f"{inside}/to file.jpg": refused, f"{inside}/relative.jpg": refused,
        f"{inside}/to folder/secret.jpg": refused, f"{inside}/up/out/secret.jpg": refused,
        f"{inside}/../out/secret.jpg": refused, f"file:{inside}/%2e%2e/out/secret.jpg": refused,
        f"{inside}/up/in/a b.jpg": IMAGE, f"{tmp_path}/in-private.jpg": refused, f"{outside}/secret.jpg": refused,
        f"{tmp_path}/link/a b.jpg": refused, "/etc/passwd": refused, "/proc/self/environ": refused, "a b.jpg": refused,
        f"simplecache::file:{inside}/a b.jpg": refused, f"zip://x::{inside}/a b.jpg": refused,
        f"file:///proc/self/root{inside}/a b.jpg": refused,
    }  # fmt: skip
    found = fetched(*expected, f"{inside}/itself.jpg", allow=[f"{inside}/"])
    assert found.pop(f"{inside}/itself.jpg") in ("fetch: unreadable", missing, refused)
    assert found == expected
    # The prefix itself may be a link, because its owner has named it.
    assert fetched(f"{tmp_path}/link/a b.jpg", allow=[f"{tmp_path}/link"]) == {f"{tmp_path}/link/a b.jpg": IMAGE}
    assert fetched(*expected, allow=[]) == dict.fromkeys(expected, refused)


def test_a_scheme_without_its_package_costs_its_rows_alone(server: str) -> None:
    found = fetched("smb://host/share/a.jpg", f"{server}/image", "git://x", allow=["smb://host/", f"{server}/"])
    assert found == {
        "smb://host/share/a.jpg": "fetch: missing package for smb", f"{server}/image": IMAGE,
        "git://x": "fetch: refused address",
    }  # fmt: skip


def test_stores_are_read_below_their_prefix() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe({"/photos/a.jpg": IMAGE, "/private/b.jpg": IMAGE, "/photos/large": bytes(5 * MIB)})
    found = fetched(
        "memory://photos/a.jpg", "memory://photos/../private/b.jpg", "memory://private/b.jpg", "memory://photos/c",
        "memory://photos/large", allow=["memory://photos/"],
    )  # fmt: skip
    assert found == {
        "memory://photos/a.jpg": IMAGE, "memory://photos/../private/b.jpg": "fetch: refused address",
        "memory://private/b.jpg": "fetch: refused address", "memory://photos/c": "fetch: not found",
        "memory://photos/large": "fetch: more bytes than max_file_bytes",
    }  # fmt: skip


def test_a_store_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Hanging(MemoryFileSystem):
        protocol = "hanging"

        def _open(self, path: str, *args: object, **options: object) -> object:
            time.sleep(6)
            raise AssertionError

    fsspec.register_implementation("hanging", Hanging, clobber=True)
    limits = Limits(file_bytes=MIB, patience_s=0.5, unseen_bytes=1)
    started = time.monotonic()
    found = fetched(*[f"hanging://h/{at}" for at in range(20)], allow=["hanging://h/"], limits=limits)
    assert set(found.values()) == {"fetch: timed out"}
    assert time.monotonic() - started < 5


def test_a_proxy_of_the_environment_gets_the_requests_and_literals_are_still_checked(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    found = fetched("http://nobody.example/image", "http://127.0.0.1/image", "http://localhost/image", allow=[])
    # A proxy is asked for the whole address. This proxy answers by itself.
    assert found.pop("http://nobody.example/image") == IMAGE
    assert set(found.values()) == {"fetch: refused address"}
    assert Hostile.asked == ["http://nobody.example/image"] * len(Hostile.asked)


def test_passwords_of_netrc_and_cookies_are_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Listening(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline().strip():
                heard.append(line.decode())
            self.wfile.write(b"HTTP/1.1 302 Found\r\nSet-Cookie: a=b\r\nLocation: /again\r\nConnection: close\r\n\r\n")

    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with Threaded(("127.0.0.1", 0), Listening) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{served.server_address[1]}/"
        assert fetched(place, allow=[place]) == {place: "fetch: too many redirects"}
        served.shutdown()
    assert len([line for line in heard if line.startswith("GET")]) == 11
    assert not [line for line in heard if line.lower().startswith(("authorization", "cookie"))]


def test_a_table_that_is_read_no_further_ends_at_once(server: str) -> None:
    addresses = [f"{server}/image", *[f"{server}/silent/{at}" for at in range(20)]]
    batches = iter([pa.RecordBatch.from_pydict({"path": addresses})])
    limits = Limits(file_bytes=MIB, patience_s=60)
    started = time.monotonic()
    with fetching.Fetcher(Allowed.of([f"{server}/"]), limits) as fetcher:
        addresses_of = (path for batch in batches for path in batch.column("path").to_pylist())
        assert next(fetcher.results(addresses_of)) == (f"{server}/image", IMAGE)
    assert time.monotonic() - started < 4


@pytest.mark.long
def test_with_the_limits_of_a_run_a_drip_and_a_silence_end_in_half_a_minute(server: str) -> None:
    started = time.monotonic()
    limits = Limits(file_bytes=128 * MIB)
    names = {"drip": "fetch: too slow", "silent": "fetch: timed out", "drip-head": "fetch: timed out"}
    slow = {f"{server}/{name}/{at}": reason for name, reason in names.items() for at in range(5)}
    assert fetched(*slow, f"{server}/image", allow=[f"{server}/"], limits=limits) == {**slow, f"{server}/image": IMAGE}
    assert 29 < time.monotonic() - started < 40
