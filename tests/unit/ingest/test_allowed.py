"""Tables of addresses that may be read. No spelling of an address leaves the prefix that it was checked against."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_aesthetic.errors import OptionError
from spark_aesthetic.ingest.allowed import Allowed, is_public, parse, spellings


def permits(address: str, *allow: str) -> bool:
    allowed = pickle.loads(pickle.dumps(Allowed.of(allow)))
    return any(allowed.permits(place) for place in spellings(address))


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/a.jpg", "HTTPS://Example.COM/a.jpg", "http://example.com", "http://example.com./a.jpg",
        "https://example.com:8443/a b.jpg?size=1&of=http://127.0.0.1/", "http://bücher.example/ü.jpg",
        "http://93.184.216.34/a.jpg", "http://[2606:2800:220:1::1]/a.jpg", "http://[::ffff:93.184.216.34]/a.jpg",
        "http://[64:ff9b::5db8:d822]/a.jpg", "http://example.com/../a.jpg", "http://example.com/%2e%2e/a.jpg",
    ],
)  # fmt: skip
def test_without_a_prefix_public_addresses_are_read(address: str) -> None:
    assert permits(address)


NEVER = [
    "/etc/passwd", "file:/etc/passwd", "file:///etc/passwd", "FILE:/etc/passwd", "file://localhost/etc/passwd",
    "file://evil/etc/passwd", "local:///etc/passwd", "~/x.jpg", "x.jpg", "../x.jpg", "", " ", "\0", ":", "://", "//",
    "dbfs:/x.jpg", "dbfs:x", "/proc/self/environ", "s3://bucket/x.jpg", "gs://bucket/x.jpg", "hdfs:///x.jpg",
    "ftp://h.example/x", "sftp://h.example/x", "git://x", "github://o:r@/x", "smb://h/x", "memory://x", "data:,x",
    "zip://a.jpg::http://example.com/x.zip", "zip:///etc/x.zip", "simplecache::http://example.com/a.jpg",
    "simplecache::file:///etc/passwd", "blockcache::s3://b/x", "filecache::/x", "tar://a::x.tar", "jar:///x", "dir::/x",
    "reference://x", "generic://x", "http://example.com/a::file:///etc/passwd", "http:/example.com/a",
    "http:example.com", "http:///a", "http://", "http://user@example.com/", "http://example.com@93.184.216.34/",
    "http://example.com:80@127.0.0.1/", "http://a:b@example.com/", "http://example.com\\@127.0.0.1/",
    "http://example.com\\.evil/", "http:\\\\example.com\\a", "http://example.com/..\\x", "http://exa\nmple.com/",
    "http://example.com/\r\nHost: evil", "http://example.com:0/", "http://example.com:99999/", "http://example.com:x/",
    "http://127.0.0.1/", "http://127.0.0.1./", "http://127.1/", "http://2130706433/", "http://0x7f000001/",
    "http://0x7f.0.0.1/", "http://0177.0.0.1/", "http://017700000001/", "http://127.0.0.0x1/",
    "http://\uff11\uff12\uff17.\uff10.0.1/",
    "http://①②⑦.0.0.1/", "http://%31%32%37.0.0.1/", "http://127.0.0.1%2f.example.com/", "http://1.2.3.4.5/",
    "http://256.1.1.1/", "http://169.254.169.254/latest/meta-data/", "http://[::ffff:169.254.169.254]/",
    "http://[::1]/",
    "http://[::]/", "http://0.0.0.0/", "http://0/", "http://10.1.2.3/", "http://172.16.0.1/", "http://192.168.0.1/",
    "http://100.64.0.1/", "http://198.18.0.1/", "http://224.0.0.1/", "http://240.0.0.1/", "http://255.255.255.255/",
    "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/", "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/", "http://[fc00::1]/", "http://[fec0::1]/", "http://[ff02::1]/",
    "http://[2002:7f00:1::]/",
    "http://[64:ff9b::7f00:1]/", "http://[64:ff9b::a9fe:a9fe]/", "http://[64:ff9b:1::1]/", "http://[2001::1]/",
    "http://localhost/", "http://LOCALHOST./", "http://a.localhost/", "http://intranet/", "http://db.internal/",
    "http://metadata.google.internal/", "http://printer.local/", "http://[::1", "http://exa mple.com/",
    "ws://example.com",
    "http+unix://x/", "javascript:x", "http://example..com/", "http://.example.com/", "http://example.com../",
]  # fmt: skip


@pytest.mark.parametrize("address", NEVER)
def test_without_a_prefix_nothing_else_is_read(address: str) -> None:
    assert not permits(address)
    assert not permits(address, "http://", "https://")
    assert not permits(address, "s3://photos/", "/Volumes/main/photos/", "http://127.0.0.1:8931/")


BELOW = {
    "s3://bucket/photos": {"s3://bucket/photos": True, "s3://bucket/photos/": True, "s3://bucket/photos/a.jpg": True,
                           "S3://bucket/photos/a.jpg": True, "s3://bucket/photos-private/a.jpg": False,
                           "s3://bucket/photosx": False, "s3://bucket/": False, "s3://bucket": False},
    "s3://bucket/photos/": {
        "s3://bucket/photos/a.jpg": True, "s3://bucket/photos/ü 1.jpg": True, "s3://bucket/photos/a/b/c.jpg": True,
        "s3://bucket/photos/a%20b.jpg": True, "s3://bucket/photos/..a.jpg": True, "s3://bucket/photos": False,
        "s3://bucket/photos/../private/a": False, "s3://bucket/photos/./../private/a": False,
        "s3://bucket/photos/%2e%2e/private/a": False, "s3://bucket/photos/%2E%2E%2Fprivate/a": False,
        "s3://bucket/photos/%252e%252e/private/a": False, "s3://bucket/photos/%25252e%25252e/private": False,
        "s3://bucket/photos/..%2fprivate/a": False, "s3://bucket/photos/..%5cprivate/a": False,
        "s3://bucket/photos/..\\private": False, "s3://bucket/photos\\..\\private": False,
        "s3://bucket/photos%2f..%2fprivate": False, "s3://bucket//photos/a.jpg": False, "s3://Bucket/photos/a": False,
        "s3a://bucket/photos/a.jpg": False, "s3://bucket@evil/photos/a": False, "s3://evil/photos/a": False,
        "s3://evil/bucket/photos/a": False, "s3:/bucket/photos/a": False, "s3:bucket/photos/a": False,
        "s3:///bucket/photos/a": False, "simplecache::s3://bucket/photos/a": False, "s3://bucket/photos/a::x": False,
        "zip://s3://bucket/photos/a": False, "http://bucket/photos/a": False, "/bucket/photos/a": False,
    },
    "/Volumes/main/photos/": {
        "/Volumes/main/photos/a.jpg": True, "file:/Volumes/main/photos/a.jpg": True,
        "/Volumes/main//photos/a.jpg": True,
        "file:///Volumes/main/photos/a.jpg": True, "FILE://localhost/Volumes/main/photos/a": True,
        "/Volumes/main/photos/a::b.jpg": True, "/Volumes/main/photos/x/../a.jpg": True,
        "/Volumes/main/photos/a\\b": True,
        "file:/Volumes/main/photos/a%20b.jpg": True, "//Volumes/main/photos/a.jpg": True,
        "/Volumes/main/photos/../private": False, "/Volumes/main/photos-private/a": False, "/Volumes/main": False,
        "/Volumes/main/photos/a/../../private": False, "file:/Volumes/main/private/%2e%2e/private/a": False,
        "file://evil/Volumes/main/photos/a": False, "dbfs:/Volumes/main/photos/a": False,
        "Volumes/main/photos/a": False,
        "~/Volumes/main/photos/a": False, "s3://Volumes/main/photos/a": False, "/Volumes/main/photos/\0": False,
        "local:///Volumes/main/photos/a": False, "zip:///Volumes/main/photos/a.zip": False,
        "/volumes/main/photos/a": False,
    },
    "dbfs:/photos": {"dbfs:/photos/a.jpg": True, "/dbfs/photos/a.jpg": True, "dbfs:/photos2/a": False,
    "/photos/a": False,
                     "dbfs:/photos/../x": False},
    "http://127.0.0.1:8931/": {
        "http://127.0.0.1:8931/a.jpg": True, "HTTP://127.0.0.1:8931/a/../b": True, "http://127.0.0.1:8931": True,
        "http://127.0.0.1.:8931/a": True, "http://[::ffff:127.0.0.1]:8931/a": True, "http://127.0.0.1:8931?a": True,
        "https://127.0.0.1:8931/a": False, "http://127.0.0.1/a": False, "http://127.0.0.1:89310/a": False,
        "http://127.0.0.2:8931/a": False, "http://127.1:8931/a": False, "http://2130706433:8931/": False,
        "http://localhost:8931/": False, "http://127.0.0.1:8931@evil.example/": False, "http://example.com/": False,
        "http://127.0.0.1:8931.evil.example/": False, "http://x@127.0.0.1:8931/": False, "http://[::1]:8931/": False,
    },
    "https://cdn.example.com/photos": {
        "https://cdn.example.com/photos/a.jpg?x=/../y": True, "https://CDN.example.com.:443/photos/a.jpg#x": True,
        "https://cdn.example.com/photos": True, "https://cdn.example.com/photos?x": True,
        "https://cdn.example.com/x/../photos/a": True, "https://cdn.example.com/%70hotos/a": True,
        "https://cdn.example.com/photos/a%2fb.jpg": True, "https://cdn.example.com/photos-private/a": False,
        "https://cdn.example.com/photos/../private": False, "https://cdn.example.com/photos/%2e%2e/private": False,
        "https://cdn.example.com/photos/%2e%2e%2fprivate": False, "https://cdn.example.com/photos/..;/private": False,
        "https://cdn.example.com/photos/%252e%252e/private": False, "https://cdn.example.com/photos%2fa": False,
        "https://cdn.example.com/photos/..%5cprivate": False, "https://cdn.example.com//photos/a": False,
        "https://cdn.example.com/Photos/a": False, "http://cdn.example.com/photos/a": False,
        "https://cdn.example.com.evil.example/photos/a": False, "https://evil.example/cdn.example.com/photos": False,
        "https://xcdn.example.com/photos/a": False, "https://cdn.example.com\\@evil/photos/a": False,
    },
    "http://bücher.example/": {"http://xn--bcher-kva.example/a": True, "http://BÜCHER.example/a": True,
                               "http://bucher.example/a": False},
    "http://[::1]:80/": {"http://[0:0:0:0:0:0:0:1]/a": True, "http://[::1]/": True, "http://127.0.0.1/": False},
    "/": {"/etc/passwd": True, "file:/etc/passwd": True, "s3://etc/passwd": False, "http://example.com/": False},
    "s3://bucket": {"s3://bucket/any/a.jpg": True, "s3://bucket-2/a": False, "s3://bucket/../bucket-2/a": False},
    "ftp://h.example/x/": {"ftp://h.example/x/a": True, "ftp://u@h.example/x/a": False,
    "ftp://h.example/%2e%2e/": False},
}  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "address", "expected"),
    [(prefix, address, expected) for prefix, table in BELOW.items() for address, expected in table.items()],
)
def test_a_prefix_is_a_folder_that_no_address_leaves(prefix: str, address: str, expected: bool) -> None:
    assert permits(address, prefix) is expected
    assert permits(address, "https://other.example/", prefix, "s3://another/") is expected


def test_a_path_of_file_is_taken_as_it_is_and_then_unescaped_each_checked_by_itself() -> None:
    allowed = Allowed.of(["/photos/"])
    literal, unescaped = spellings("file:/photos/%2e%2e/private/a%20b.jpg")
    assert (literal.path, allowed.permits(literal)) == ("/photos/%2e%2e/private/a%20b.jpg", True)
    assert (unescaped.path, allowed.permits(unescaped)) == ("/private/a b.jpg", False)
    assert [place.path for place in spellings("/photos/%2e%2e/a")] == ["/photos/%2e%2e/a"]
    assert [place.path for place in Allowed.of(["file:/my%20photos/", "/my%20photos"]).prefixes] == [
        "/my photos", "/my%20photos",
    ]  # fmt: skip
    assert Allowed.of(["~/photos"]).prefixes[0].path == f"{Path.home()}/photos"


def test_public_addresses_beside_prefixes_are_named() -> None:
    assert permits("https://example.com/a.jpg", "s3://bucket/", "https://")
    assert not permits("http://example.com/a.jpg", "s3://bucket/", "https://")
    assert not permits("https://127.0.0.1/a.jpg", "https://")
    # If a host has its own prefix, only addresses below that prefix are read, whatever else is allowed.
    assert not permits("https://cdn.example.com/b.jpg", "https://", "https://cdn.example.com/a/")


@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        ("8.8.8.8", True), ("168.63.129.17", True), ("2a00:1450:4001::1", True), ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        *((ip, False) for ip in (
            "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "168.63.129.16",
            "::ffff:168.63.129.16", "64:ff9b::a83f:8110", "169.254.169.254", "172.31.255.255",
            "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.19.255.255", "224.0.0.251",
            "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::8.8.8.8", "::ffff:10.0.0.1",
            "64:ff9b::a00:1", "64:ff9b:1::808:808", "2001::1", "2001:db8::1", "2002:808:808::", "3fff::1", "5f00::1",
            "100::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "", "localhost",
            "127.1",
        )),
    ],
)  # fmt: skip
def test_what_is_public_does_not_depend_on_python(ip: str, expected: bool) -> None:
    assert is_public(ip) is expected


@pytest.mark.parametrize(
    ("allow", "host", "ip", "expected"),
    [
        ([], "example.com", "93.184.216.34", True),
        ([], "example.com", "127.0.0.1", False),
        (["http://"], "example.com", "10.0.0.1", False),
        (["http://example.com/"], "example.com", "93.184.216.34", True),
        # The owner of the name may point it anywhere.
        (["http://example.com/"], "example.com", "127.0.0.1", False),
        (["http://example.com/", "http://10.0.0.1/"], "example.com", "10.0.0.1", True),
        (["http://example.com/", "http://10.0.0.1:8080/"], "example.com", "10.0.0.1", False),
        (["http://", "http://10.0.0.1/"], "example.com", "10.0.0.1", False),
        # Nobody can register these names.
        (["http://localhost/"], "localhost", "127.0.0.1", True),
        (["http://images.internal/"], "images.internal", "10.0.0.1", True),
        (["http://localhost:8080/"], "localhost", "127.0.0.1", False),
        ([], "localhost", "::1", False),
    ],
)  # fmt: skip
def test_a_name_leads_to_no_private_address_unless_both_are_named(
    allow: list[str], host: str, ip: str, expected: bool
) -> None:
    assert Allowed.of(allow).reaches(host, 80, ip) is expected


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("", "an empty string"), ("  ", "an empty string"), (" /x", "white space"), ("/x\n", "white space"), (None,
        "a NoneType"),
        ("photos/", "neither a scheme nor an absolute path"), ("./photos", "neither"), ("bucket", "neither"),
        ("simplecache::s3://bucket/", "a chain"), ("s3://b/x::y", "a chain"), ("zip://a", "the scheme zip"),
        ("local:///x", "the scheme local"), ("s3://bucket/*", "a pattern"), ("/photos/{a,b}", "a pattern"),
        ("s3://bucket/[ab]/", "a pattern"), ("/photos/?.jpg", "a query, a fragment or a pattern"),
        ("http://h.example/?x=1", "a query"), ("http://h.example/#x", "a query, a fragment"), ("s3://", "no bucket"),
        ("file:", "unreadable"), ("file:x", "unreadable"), ("file://evil/x", "unreadable"), ("s3:bucket/x",
        "unreadable"),
        ("/a/../b", "'.' or '..'"), ("s3://bucket/%2e%2e/", "'.' or '..'"), ("file:/a/%252e%252e/b", "'.' or '..'"),
        ("nosuch://x/", "the scheme nosuch, which fsspec does not know"), ("htp://x/", "did you mean 'http'"),
        ("http://u:p@h.example/", "a user name"), ("http://127.1/", "an ambiguous host"), ("http:///x", "unreadable"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("called", ["allow", "--allow"])
def test_a_wrong_prefix_is_one_line_that_names_the_option(prefix: str, found: str, called: str) -> None:
    with pytest.raises(OptionError) as caught:
        Allowed.of(["s3://bucket/photos/", prefix], called)
    text = str(caught.value)
    assert text.startswith(f"{called} {prefix!r}: expected ")
    assert found in text.partition("found ")[2]
    assert "\n" not in text


def test_a_text_in_place_of_a_list_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"allow: expected a list of prefixes, found '/x'\. Write \['/x'\]"):
        Allowed.of("/x")


def test_what_is_checked_is_what_is_opened() -> None:
    address = parse("HTTP://Example.COM.:80/a/%2e%2e/b c?d#e")
    assert address is not None
    assert (str(address.url), address.host, address.path) == ("http://example.com/b%20c?d", "example.com", "/b%20c")
    store = parse("S3://bucket/a b")
    assert store is not None
    assert store.text == "s3://bucket/a b"


PIECES = (
    "http", "s3", "FILE", "file", ":", "/", "//", "\\", "..", ".", "%2e", "%2E", "%2f", "%5c", "%25", "%00", ";", "?",
    "#", "@", "cdn.example.com", "127.0.0.1", "photos", "photos-private", "bucket", "::", "[::1]", "\n", "\t", " ", "ü",
    "x", "80",
)  # fmt: skip


@given(pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12))
def test_whatever_is_put_behind_a_prefix_stays_below_it(pieces: list[str]) -> None:
    end = "".join(pieces)
    for prefix in ("https://cdn.example.com/photos", "s3://bucket/photos", "/data/photos", "file:/data/photos"):
        allowed = Allowed.of([prefix])
        for address in (prefix + end, f"{prefix}/{end}", end):
            for place in filter(allowed.permits, spellings(address)):
                decoded = unquote(unquote(unquote(place.path)))
                folder = prefix.rpartition("/photos")[0].rpartition("example.com")[2].rpartition(":")[2]
                below = f"{folder}/photos".replace("//bucket", "")
                assert place.path == below or place.path.startswith(f"{below}/")
                if place.scheme != "file":
                    assert ".." not in [part.partition(";")[0] for part in re.split(r"[/\\]", decoded)]
                if place.url is not None:
                    assert (place.url.scheme, place.url.raw_host, place.url.port) == ("https", "cdn.example.com", 443)
                    assert (place.url.raw_path, place.url.raw_user) == (place.path, None)
