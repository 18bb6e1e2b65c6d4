"""Decide which addresses may be read: a pure rule over prefixes, checked on the executor before each request.

Table rows are untrusted input. An address is opened only if it lies below a prefix that the operator has listed, or if
it is http(s) to a public address and no prefix was listed. Redirect targets are checked in the same way. The checked
value is the one that is opened, so no second parser can interpret it differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from posixpath import normpath
from typing import NamedTuple
from urllib.parse import unquote

import fsspec
from yarl import URL

from spark_aesthetic.errors import OptionError, nearest
from spark_aesthetic.files import home, mounted

__all__ = ["Address", "Allowed", "is_public", "parse"]

WEB = ("http", "https")

# These schemes open a different address, cache a copy on disk, or contain the bytes themselves.
_WRAPPERS = frozenset(
    ("async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "dask", "data", "dir", "filecache",
     "generic", "jar", "libarchive", "local", "reference", "simplecache", "tar", "zip")
)  # fmt: skip

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
# Spark writes `file:/path`; URLs are `file:///path` or `file://localhost/path`.
_FILE = re.compile(r"(?://(?:localhost)?)?(/(?!/).*)", re.DOTALL | re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_IN_BRACKETS = re.compile(r"^[^/]*//\[[^]/]*\]")

# No chain of servers decodes a path this often.
_DECODINGS = 5

# Domain suffixes reserved for private networks. Nobody can register one publicly.
_LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa")

# For these networks `is_global` differs between Python releases, or is true although they map to other addresses.
# 168.63.129.16 is Azure's platform service on every virtual machine; it serves certificates and extension settings.
_NOT_PUBLIC = tuple(
    map(
        ip_network,
        ("0.0.0.0/8", "100.64.0.0/10", "168.63.129.16/32",
         "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "224.0.0.0/3",
         "::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16",
         "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
)  # fmt: skip
# IPv6-only networks write an IPv4 address into the last 32 bits of this prefix.
_NAT64 = ip_network("64:ff9b::/96")


class Address(NamedTuple):
    """An address in the canonical form that is both checked and opened.

    Attributes:
        scheme: The scheme in lower case; "file" for a local path.
        host: The http(s) host that is connected to, or the part of a store's address before the first slash.
        port: The http(s) port, or 0 for other schemes.
        path: The absolute path. Local paths contain no `..`.
        url: The URL that is requested, for http(s) only.
    """

    scheme: str
    host: str
    port: int
    path: str
    url: URL | None = None

    @property
    def text(self) -> str:
        """The address in fsspec's form."""
        return self.path if self.scheme == "file" else f"{self.scheme}://{self.host}{self.path}"


def parse(address: str) -> Address | None:
    """Return the canonical form of an address, or None if it is not an absolute address of a single place.

    Examples:
        >>> parse("FILE:///data/../etc/x").path, parse("HTTP://Example.com.:80/a").host, parse("zip://a::/b")
        ('/etc/x', 'example.com', None)
    """
    if "\0" in address:
        return None
    if address.startswith("/"):
        return _local(address)
    named = _SCHEME.fullmatch(address)
    if named is None:
        return None
    scheme, rest = named[1].lower(), named[2]
    if scheme == "file":
        local = _FILE.fullmatch(rest)
        return None if local is None else _local(local[1])
    if scheme == "dbfs":
        return _local(mounted(f"dbfs:{rest}")) if rest.startswith("/") else None
    if not rest.startswith("//") or "::" in _IN_BRACKETS.sub("", address) or _CONTROL.search(address):
        return None
    if scheme in WEB:
        return _web(address)
    host, slash, path = rest[2:].partition("/")
    return None if scheme in _WRAPPERS or _climbs(path) else Address(scheme, host, 0, slash + path)


def spellings(address: str) -> list[Address]:
    """Return every reading of an address: Spark escapes local paths, but a file name may also contain a real `%`."""
    found = parse(address)
    if found is None:
        return []
    if found.scheme != "file" or address.startswith("/") or "%" not in found.path:
        return [found]
    return [found, *([] if "%00" in found.path else [_local(unquote(found.path))])]


def _local(path: str) -> Address:
    return Address("file", "", 0, "/" + normpath(path).lstrip("/"))


def _web(address: str) -> Address | None:
    # Some servers and clients treat a backslash as a slash.
    if "\\" in address or "@" in re.split(r"[/?#]", address.partition("://")[2], maxsplit=1)[0]:
        return None
    try:
        url = URL(address).with_fragment(None)
        host, port = _host(url.raw_host or ""), url.port
        if host is None or not port:
            return None
        url = url if host == url.raw_host else url.with_host(host)
    # yarl raises it for a port out of range; ip_address and the IDNA codec raise subclasses.
    except ValueError:
        return None
    return Address(url.scheme, host, port, url.raw_path or "/", url)


def _host(raw: str) -> str | None:
    """Return the canonical form of a host, or None if resolvers may interpret it in several ways."""
    host = raw.lower().removesuffix(".")
    if ":" in host:
        number = IPv6Address(host)
        return None if "%" in host else str(number.ipv4_mapped or number)
    if not _HOST.fullmatch(host):
        return None
    # The C library also accepts 127.1, 0x7f000001 and 017700000001 as IP addresses.
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        return str(IPv4Address(host))
    return host


def _climbs(path: str) -> bool:
    """Whether a path has a `.` or `..` segment, however often it is escaped. Some servers read `..;x` as `..`."""
    for _ in range(_DECODINGS):
        if any(segment.partition(";")[0] in (".", "..") for segment in re.split(r"[/\\]", path)):
            return True
        path, before = unquote(path), path
        if path == before:
            return False
    return True


def is_public(ip: str) -> bool:
    """Whether an IP address is public. An IPv6 address with an embedded IPv4 address is judged by the latter.

    Examples:
        >>> is_public("93.184.216.34"), is_public("169.254.169.254"), is_public("64:ff9b::7f00:1")
        (True, False, False)
    """
    try:
        number = ip_address(ip)
    except ValueError:
        return False
    if isinstance(number, IPv6Address):
        if number.ipv4_mapped is not None:
            return is_public(str(number.ipv4_mapped))
        if number in _NAT64:
            return is_public(str(IPv4Address(int(number) & 0xFFFFFFFF)))
    return number.is_global and not any(
        number in network for network in _NOT_PUBLIC if network.version == number.version
    )


def _is_number(host: str) -> bool:
    return ":" in host or host.rpartition(".")[2].isdigit()


def _is_local_name(host: str) -> bool:
    return "." not in host or any(host.endswith(f".{name}") for name in _LOCAL_NAMES)


@dataclass(frozen=True)
class Allowed:
    """The prefixes that an operator has listed.

    Attributes:
        prefixes: Each is a folder, or a single address if it does not end in a slash. `http://` and `https://` without
            a host allow all public addresses of that scheme, which is also the rule without any prefix.
    """

    prefixes: tuple[Address, ...] = ()

    @classmethod
    def of(cls, allow: Iterable[str], called: str = "allow") -> Allowed:
        """Parse and check the user's prefixes.

        Args:
            allow: The prefixes.
            called: The caller's name for the option.

        Raises:
            OptionError: A prefix is not valid.
        """
        if isinstance(allow, str) or not isinstance(allow, Iterable):
            raise OptionError(f"{called}: expected a list of prefixes, found {allow!r}. Write [{str(allow)!r}].")
        return cls(tuple(_prefix(text, called) for text in allow))

    def permits(self, address: Address) -> bool:
        """Whether an address lies below a prefix. Without prefixes, http(s) to public hosts is permitted."""
        if address.scheme not in WEB:
            return any(_is_below(address, prefix) for prefix in self.prefixes)
        own = [prefix for prefix in self.prefixes if (prefix.host, prefix.port) == (address.host, address.port)]
        # If prefixes list a host and port, only addresses below these prefixes are read from it, even if `https://`
        # is also allowed.
        if own:
            return any(_is_below(address, prefix) for prefix in own)
        if self.prefixes and Address(address.scheme, "", 0, "") not in self.prefixes:
            return False
        return is_public(address.host) if _is_number(address.host) else not _is_local_name(address.host)

    def reaches(self, host: str, port: int, ip: str) -> bool:
        """Whether a request to a permitted host may connect to an IP address that the host name resolves to.

        The owner of a public name can point it anywhere. A private IP address is therefore allowed only if prefixes
        list both the name and the IP address. For a private name (see `_is_local_name`), listing the name is enough.
        """
        if is_public(ip):
            return True
        named = {(prefix.host, prefix.port) for prefix in self.prefixes}
        return (host, port) in named and (_is_local_name(host) or (ip.partition("%")[0], port) in named)


def _is_below(address: Address, prefix: Address) -> bool:
    if (address.scheme, address.host, address.port) != (prefix.scheme, prefix.host, prefix.port):
        return False
    if prefix.path == "/":
        return True
    if address.scheme in WEB and _climbs(address.path):
        return False
    folder = prefix.path if prefix.path.endswith("/") else f"{prefix.path}/"
    return address.path == prefix.path or address.path.startswith(folder)


def _prefix(text: str, called: str) -> Address:
    """Parse one prefix of `allow`."""
    found = _fault(text)
    if found is not None:
        raise OptionError(
            f"{called} {text!r}: expected an address prefix, such as s3://bucket/photos/, "
            f"/Volumes/main/photos/ or https://, found {found}. Write the full folder, bucket or host."
        )
    given = home(text)
    if given.lower() in ("http://", "https://"):
        return Address(given.lower().removesuffix("://"), "", 0, "")
    address = spellings(given)[-1]
    # Normalising a local path has already removed its trailing slash.
    return address if address.scheme == "file" else address._replace(path=address.path or "/", url=None)


def _fault(text: str) -> str | None:
    """Describe the fault of a prefix, or return None."""
    if not isinstance(text, str):
        return f"a {type(text).__name__}"
    if text != text.strip() or _CONTROL.search(text) or not text:
        return "leading or trailing white space, or a control character" if text.strip() else "an empty string"
    given = home(text)
    named = None if given.startswith("/") else _SCHEME.fullmatch(given)
    scheme = "" if named is None else named[1].lower()
    checks = (
        (scheme != "" and "::" in _IN_BRACKETS.sub("", given), "a chain of addresses"),
        (not given.startswith("/") and scheme == "", "neither a scheme nor an absolute path"),
        ("?" in given or (scheme in WEB and "#" in given), "a query, a fragment or a pattern"),
        (bool(set("*{}") & set(given)) or (scheme != "" and "[" in _IN_BRACKETS.sub("", given)), "a pattern"),
        (_climbs(given), "'.' or '..' in its path"),
        (scheme in _WRAPPERS, f"the scheme {scheme}, which opens other addresses or caches copies"),
        (scheme not in ("", "file", *WEB) and scheme not in _known(), _unknown(scheme)),
        (given.lower() in ("http://", "https://"), None),
        (scheme not in ("", "file", "dbfs") and given.rstrip("/").endswith(":"), "no bucket or host"),
        (not spellings(given), "an unreadable address (a user name, or an ambiguous host)"),
    )
    return next((found for is_wrong, found in checks if is_wrong), None)


def _known() -> list[str]:
    """List the schemes that fsspec knows in this process, including those registered at run time."""
    return [name for name in (*fsspec.available_protocols(), *fsspec.registry) if name not in _WRAPPERS]


def _unknown(scheme: str) -> str:
    known = sorted(set(_known()))
    return f"the scheme {scheme}, which fsspec does not know ({nearest(scheme, known)})"
