"""Downloads from a real server on this machine, with the faults that real networks have."""

from __future__ import annotations

import hashlib
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from spark_aesthetic.errors import ChecksumError, WeightsError, WeightsNotFoundError
from spark_aesthetic.predictors import download as download_module
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.download import download
from spark_aesthetic.predictors.recipe import BUILT_IN, Predictor

# With the fixture `blocks`, this content takes several requests.
CONTENT = random.Random(0).randbytes(5 * 2**20 + 7)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BLOCK_BYTES, CHUNK_BYTES = 2**20, 2**14


class Server(ThreadingHTTPServer):
    """A server of `files` that records the requested ranges and counts the bytes it sends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/weights.bin": CONTENT}
        self.knows_ranges = True
        self.says_that_it_knows_no_ranges = False
        # A connection ends once the server has sent this many bytes in all. None sets no limit.
        self.cut_after: int | None = None
        self.seconds_per_piece = 0.0
        # HEAD promises this many bytes more than the file has.
        self.promised_bytes = 0
        self.ranges: list[str | None] = []
        self.served_bytes = 0
        self.lock = threading.Lock()

    def url(self, name: str = "weights.bin") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def forget(self) -> None:
        self.ranges, self.served_bytes, self.cut_after = [], 0, None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start, end = 0, len(content)
        asked = self.headers.get("Range")
        if asked is not None and self.server.knows_ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, len(content))
            if start >= end:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.says_that_it_knows_no_ranges:
            self.send_header("Accept-Ranges", "none")
        promised = 0 if with_body else self.server.promised_bytes
        self.send_header("Content-Length", str(end - start + promised))
        self.end_headers()
        if with_body:
            with self.server.lock:
                self.server.ranges.append(asked)
            self.give(content[start:end])

    def give(self, body: bytes) -> None:
        for at in range(0, len(body), 2**16):
            piece = body[at : at + 2**16]
            with self.server.lock:
                left = len(piece) if self.server.cut_after is None else self.server.cut_after - self.server.served_bytes
                piece = piece[: max(left, 0)]
                self.server.served_bytes += len(piece)
            time.sleep(self.server.seconds_per_piece)
            try:
                self.wfile.write(piece)
            except ConnectionError:  # the client has what it wanted
                return
            if left < 2**16 and self.server.cut_after is not None:
                return

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce blocks and chunks to a 64th, so that a small file has several blocks."""
    monkeypatch.setattr(download_module, "_BLOCK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(download_module, "_CHUNK_BYTES", CHUNK_BYTES)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SPARK_AESTHETIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dead_url() -> str:
    """Return an address on this machine where no server listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}/model.safetensors"


def head_file(dimension: int = 4) -> bytes:
    return save({"weight": np.ones((1, dimension), np.float32), "bias": np.zeros(1, np.float32)})


def predictor(**fields: str | None) -> Predictor:
    recipe: dict[str, str | None] = {
        "name": "mine",
        "backbone": "ViT-S-32",
        "backbone_weights": "/nowhere/backbone.safetensors",
        "head_weights": "/nowhere/head.safetensors",
    }
    return Predictor(**{**recipe, **fields})


# Complete and resumed downloads


@pytest.mark.parametrize("sha256", [SHA256, None], ids=["checked", "unchecked"])
def test_a_download_arrives_whole_and_leaves_no_part(server: Server, tmp_path: Path, sha256: str | None) -> None:
    target = tmp_path / "new" / "folder" / "weights.bin"
    assert download(server.url(), target, sha256=sha256) == target
    assert target.read_bytes() == CONTENT
    assert sorted(path.name for path in target.parent.iterdir() if path.suffix != ".lock") == ["weights.bin"]


def test_a_file_that_is_there_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    target.write_bytes(CONTENT)
    assert download(server.url(), target, sha256=SHA256).read_bytes() == CONTENT
    target.write_bytes(b"there")
    assert download(server.url(), target, sha256=None).read_bytes() == b"there"
    assert server.ranges == []


def test_a_file_that_is_there_takes_no_lock(server: Server, tmp_path: Path) -> None:
    """The lock is a folder here, which no user can lock, as in a read-only cache."""
    target = tmp_path / "weights.bin"
    (tmp_path / "weights.bin.lock").mkdir()
    with pytest.raises(WeightsError, match="SPARK_AESTHETIC_CACHE"):
        download(server.url(), target, sha256=SHA256)
    target.write_bytes(CONTENT)
    assert download(server.url(), target, sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["http://", "http://[bad/weights.bin", "https://host:port/weights.bin"])
def test_an_address_that_is_none_leaves_the_part_alone(url: str, tmp_path: Path) -> None:
    part = tmp_path / "weights.bin.part"
    part.write_bytes(CONTENT[:1000])
    with pytest.raises(WeightsNotFoundError):
        download(url, tmp_path / "weights.bin", sha256=SHA256)
    assert part.read_bytes() == CONTENT[:1000]


@pytest.mark.usefixtures("blocks")
def test_without_a_terminal_the_progress_is_logged(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="spark_aesthetic.predictors.download")
    download(server.url(), tmp_path / "weights.bin", sha256=SHA256)
    assert 9 <= len(caplog.messages) <= 10
    assert caplog.messages[0].startswith("downloading weights.bin: 5")
    assert f"of {len(CONTENT):,} bytes" in caplog.messages[0]
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_where_nobody_set_up_logging_the_progress_shows_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "source.bin").write_bytes(CONTENT)
    code = (
        "import sys; from pathlib import Path; from spark_aesthetic.predictors.download import download; "
        "download(sys.argv[1], Path(sys.argv[2]), sha256=None)"
    )
    command = [sys.executable, "-c", code, (tmp_path / "source.bin").as_uri(), str(tmp_path / "weights.bin")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "downloading weights.bin: " in run.stderr


@pytest.mark.usefixtures("blocks")
def test_no_byte_of_a_file_of_several_blocks_is_fetched_twice(server: Server, tmp_path: Path) -> None:
    download(server.url(), tmp_path / "weights.bin", sha256=SHA256)
    assert len(server.ranges) > 2
    assert server.served_bytes == len(CONTENT)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("cut_after", [3 * 2**20, len(CONTENT) - 1])
def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path, cut_after: int) -> None:
    target = tmp_path / "weights.bin"
    part = tmp_path / "weights.bin.part"
    server.cut_after = cut_after
    with pytest.raises(WeightsNotFoundError, match=r"cannot download .*bytes so far"):
        download(server.url(), target, sha256=SHA256)
    assert not target.exists()
    kept = part.stat().st_size
    assert 0 < kept <= cut_after
    assert part.read_bytes() == CONTENT[:kept]
    # Only the block in which the connection broke is lost.
    assert cut_after - kept <= BLOCK_BYTES + CHUNK_BYTES

    server.forget()
    assert download(server.url(), target, sha256=SHA256).read_bytes() == CONTENT
    assert server.ranges[0] is not None
    assert server.ranges[0].startswith(f"bytes={kept}-")
    assert server.served_bytes == len(CONTENT) - kept
    assert not part.exists()


def test_a_part_that_is_already_whole_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.bin.part").write_bytes(CONTENT)
    assert download(server.url(), tmp_path / "weights.bin", sha256=SHA256).read_bytes() == CONTENT
    assert server.served_bytes == 0


def test_without_a_checksum_no_part_is_continued(server: Server, tmp_path: Path) -> None:
    """The part could be from a different version of the file, and without a checksum nothing would detect it."""
    (tmp_path / "weights.bin.part").write_bytes(b"another version")
    assert download(server.url(), tmp_path / "weights.bin", sha256=None).read_bytes() == CONTENT


def test_a_connection_that_ends_early_is_no_file_even_without_a_checksum(server: Server, tmp_path: Path) -> None:
    server.cut_after = 1000
    with pytest.raises(WeightsNotFoundError):
        download(server.url(), tmp_path / "weights.bin", sha256=None)
    assert not (tmp_path / "weights.bin").exists()


def test_a_server_that_gives_less_than_it_promised_gives_no_file(server: Server, tmp_path: Path) -> None:
    server.promised_bytes = 10
    with pytest.raises(WeightsNotFoundError, match=f"after {len(CONTENT)} of {len(CONTENT) + 10} bytes"):
        download(server.url(), tmp_path / "weights.bin", sha256=None)
    assert not (tmp_path / "weights.bin").exists()


# Servers without ranges, such as Python's own http.server


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("says_so", [False, True])
@pytest.mark.parametrize("kept", [0, 2**20 + 1, len(CONTENT) - 1])
def test_a_server_without_ranges_gives_it_from_the_beginning(
    server: Server, tmp_path: Path, says_so: bool, kept: int
) -> None:
    server.knows_ranges, server.says_that_it_knows_no_ranges = False, says_so
    (tmp_path / "weights.bin.part").write_bytes(CONTENT[:kept])
    assert download(server.url(), tmp_path / "weights.bin", sha256=SHA256).read_bytes() == CONTENT
    assert server.ranges[-1] is None
    assert not (tmp_path / "weights.bin.part").exists()


@pytest.mark.usefixtures("blocks")
def test_a_server_without_ranges_that_breaks_off_is_no_file(server: Server, tmp_path: Path) -> None:
    server.knows_ranges, server.says_that_it_knows_no_ranges, server.cut_after = False, True, 2**20
    with pytest.raises(WeightsNotFoundError):
        download(server.url(), tmp_path / "weights.bin", sha256=SHA256)
    assert not (tmp_path / "weights.bin").exists()
    server.forget()
    assert download(server.url(), tmp_path / "weights.bin", sha256=SHA256).read_bytes() == CONTENT


def test_other_schemes_of_fsspec_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "source.bin").write_bytes(CONTENT)
    (tmp_path / "weights.bin.part").write_bytes(CONTENT[:10])
    url = (tmp_path / "source.bin").as_uri()
    assert download(url, tmp_path / "weights.bin", sha256=SHA256).read_bytes() == CONTENT


# Files with a different content


def test_another_file_than_asked_for_is_deleted_and_said(server: Server, tmp_path: Path) -> None:
    expected = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(ChecksumError) as caught:
        download(server.url(), tmp_path / "weights.bin", sha256=expected)
    for part in (server.url(), expected, SHA256):
        assert part in str(caught.value)
    assert not (tmp_path / "weights.bin").exists()
    assert not (tmp_path / "weights.bin.part").exists()


@pytest.mark.parametrize(
    "part", [b"begun with another file", CONTENT + b"longer than the file"], ids=["other", "longer"]
)
def test_after_a_part_of_another_file_the_next_call_succeeds(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "weights.bin.part").write_bytes(part)
    with pytest.raises(ChecksumError, match="Run again"):
        download(server.url(), tmp_path / "weights.bin", sha256=SHA256)
    assert not (tmp_path / "weights.bin").exists()
    assert download(server.url(), tmp_path / "weights.bin", sha256=SHA256).read_bytes() == CONTENT


# Two downloads at once

FETCH = """
import sys
from pathlib import Path
from spark_aesthetic.predictors.download import download
print("ready", flush=True)
sys.stdin.readline()
print(download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3]))
"""


def test_of_two_processes_at_once_one_downloads_and_both_get_the_file(server: Server, tmp_path: Path) -> None:
    server.seconds_per_piece = 0.01  # The file takes 0.8 s, so that the second process comes during the download.
    target = tmp_path / "weights.bin"
    command = [sys.executable, "-c", FETCH, server.url(), str(target), SHA256]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
    ):
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=60)[0] for process in (one, other)]
    assert outputs == [f"{target}\n"] * 2
    assert server.served_bytes == len(CONTENT)
    assert target.read_bytes() == CONTENT


# Downloads for a predictor


def test_a_backbone_is_fetched_once_into_the_cache(server: Server, own_cache: Path) -> None:
    mine = predictor(backbone_weights=server.url(), backbone_sha256=SHA256)
    path = weights.backbone_file(mine)
    assert path.is_relative_to(own_cache)
    assert path.read_bytes() == CONTENT
    assert weights.backbone_file(mine) == path
    assert server.served_bytes == len(CONTENT)


def test_a_head_is_fetched_and_scores(server: Server, own_cache: Path) -> None:
    server.files["/my%20head.safetensors"] = head_file()
    head = weights.load_head(predictor(head_weights=server.url("my%20head.safetensors")))
    assert [path.name for path in own_cache.rglob("*.safetensors")] == ["my head.safetensors"]
    assert head(np.full((1, 4), 0.5, np.float32)).tolist() == [2.0]


def test_a_file_fetched_to_find_its_checksum_is_not_fetched_again(server: Server) -> None:
    server.files["/head.safetensors"] = head_file()
    mine = predictor(head_weights=server.url("head.safetensors"), backbone_sha256=SHA256)
    pinned = weights.pin(mine)
    assert pinned.head_sha256 == hashlib.sha256(head_file()).hexdigest()
    weights.load_head(pinned)
    assert weights.pin(mine) == pinned
    assert server.served_bytes == len(head_file())


def test_a_new_checksum_for_an_address_fetches_its_new_file(server: Server) -> None:
    server.files["/head.safetensors"] = head_file(4)
    mine = predictor(head_weights=server.url("head.safetensors"), backbone_sha256=SHA256)
    weights.pin(mine)
    server.files["/head.safetensors"] = head_file(5)
    newer = predictor(**{**vars(mine), "head_sha256": hashlib.sha256(head_file(5)).hexdigest()})
    assert weights.load_head(newer).dimension == 5


def test_a_cached_file_that_was_damaged_is_fetched_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    mine = predictor(backbone_weights=server.url(), backbone_sha256=SHA256)
    path = weights.backbone_file(mine)
    path.write_bytes(CONTENT[:-1])
    assert weights.backbone_file(mine).read_bytes() == CONTENT
    assert f"{path} does not have the sha256" in caplog.text


# No network


def test_a_missing_address_is_reported_with_the_servers_answer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="404") as caught:
        download(server.url("nothing.bin"), tmp_path / "nothing.bin", sha256=SHA256)
    assert server.url("nothing.bin") in str(caught.value)
    assert not (tmp_path / "nothing.bin").exists()


@pytest.mark.parametrize(
    ("sha256", "size"),
    [
        (SHA256, "size not known"),
        # The checksum of the published ViT-L/14 gives its size, whatever the address.
        (BUILT_IN["laion-aesthetics-v2"].backbone_sha256, "1,710,540,580 bytes"),
        (BUILT_IN["laion-aesthetics-v1-b32"].backbone_sha256, "338 MiB"),
    ],
    ids=["unknown", "ViT-L-14", "ViT-B-32"],
)
def test_without_a_network_the_message_says_what_to_put_where(
    dead_url: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sha256: str, size: str
) -> None:
    monkeypatch.setenv("SPARK_AESTHETIC_WEIGHTS", str(tmp_path / "shelf"))
    with pytest.raises(WeightsNotFoundError) as caught:
        weights.backbone_file(predictor(backbone_weights=dead_url, backbone_sha256=sha256), str(tmp_path))
    message = str(caught.value)
    for part in (
        "model.safetensors",
        size,
        sha256,
        dead_url,
        "SPARK_AESTHETIC_WEIGHTS",
        "model_path",
        str(tmp_path / "model.safetensors"),
        str(tmp_path / "shelf" / "model.safetensors"),
        str(own_cache),
        "Connect",  # what went wrong: aiohttp's ClientConnectorError
    ):
        assert part in message


def test_without_a_checksum_the_message_says_so(dead_url: str) -> None:
    with pytest.raises(WeightsNotFoundError, match="size not known, sha256 not given"):
        weights.pin(predictor(backbone_weights=dead_url))


def test_with_the_file_put_in_place_no_network_is_needed(
    dead_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(CONTENT)
    mine = predictor(backbone_weights=dead_url, backbone_sha256=SHA256)
    assert weights.backbone_file(mine, str(tmp_path)) == tmp_path / "model.safetensors"
    monkeypatch.setenv("SPARK_AESTHETIC_WEIGHTS", str(tmp_path))
    assert weights.backbone_file(mine) == tmp_path / "model.safetensors"


def test_a_scheme_that_fsspec_does_not_know_is_reported(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="nonsense"):
        download("nonsense://host/weights.bin", tmp_path / "weights.bin", sha256=SHA256)
