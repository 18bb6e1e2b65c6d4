"""Which addresses may be read: a pure rule over prefixes, checked on the executor before each request and redirect.

Rows of a table are written by strangers. So an address is not opened because it is there: it lies below a prefix that
the operator has named, or it is http(s) to a public address and no prefix was named at all. What is compared is the
same value that is opened afterwards, so that no second parser can read it in another way.
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

# They open another address, keep a copy of it on the disk, or carry their bytes in themselves.
_WRAPPERS = frozenset(
    ("async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "dask", "data", "dir", "filecache",
     "generic", "jar", "libarchive", "local", "reference", "simplecache", "tar", "zip")
)  # fmt: skip

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
# Spark writes one slash, URLs have three or name this machine.
_FILE = re.compile(r"(?://(?:localhost)?)?(/(?!/).*)", re.DOTALL | re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_IN_BRACKETS = re.compile(r"^[^/]*//\[[^]/]*\]")

# More rounds than any chain of servers decodes a path.
_DECODINGS = 5

# Top-level names that are reserved for private networks: no stranger can register one.
_LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa")

# What `is_global` says of these differs between releases of Python, or is true although they lead to other addresses.
# 168.63.129.16 is the platform of every virtual machine of Azure, which gives out certificates and extension settings.
_NOT_PUBLIC = tuple(
    map(
        ip_network,
        ("0.0.0.0/8", "100.64.0.0/10", "168.63.129.16/32",
         "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "224.0.0.0/3",
         "::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16",
         "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
)  # fmt: skip
# Carries an IPv4 address in its last 32 bits, as networks without IPv4 write it.
_NAT64 = ip_network("64:ff9b::/96")


class Address(NamedTuple):
    """Where to read, in the one spelling that is compared and opened.

    Attributes:
        scheme: In lower case; "file" for a path of this machine.
        host: The host of http(s) as it is connected to, or what stands before the first slash of a store's address.
        port: The port of http(s), else 0.
        path: From the root. A local path has no `..` left.
    """

    scheme: str
    host: str
    port: int
    path: str
    url: URL | None = None

    @property
    def text(self) -> str:
        """The address as fsspec takes it."""
        return self.path if self.scheme == "file" else f"{self.scheme}://{self.host}{self.path}"


def parse(address: str) -> Address | None:
    """Give the one spelling of an address; None for whatever is no absolute address of one place.

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
    """What an address may stand for: Spark writes local paths escaped, and a name may look escaped by itself."""
    found = parse(address)
    if found is None:
        return []
    if found.scheme != "file" or address.startswith("/") or "%" not in found.path:
        return [found]
    return [found, *([] if "%00" in found.path else [_local(unquote(found.path))])]


def _local(path: str) -> Address:
    return Address("file", "", 0, "/" + normpath(path).lstrip("/"))


def _web(address: str) -> Address | None:
    # A backslash is a slash to some servers and clients.
    if "\\" in address or "@" in re.split(r"[/?#]", address.partition("://")[2], maxsplit=1)[0]:
        return None
    try:
        url = URL(address).with_fragment(None)
        host, port = _host(url.raw_host or ""), url.port
        if host is None or not port:
            return None
        url = url if host == url.raw_host else url.with_host(host)
    # Such as a port out of range; ip_address and the codec of IDNA raise subclasses of it.
    except ValueError:
        return None
    return Address(url.scheme, host, port, url.raw_path or "/", url)


def _host(raw: str) -> str | None:
    """A host in the one spelling that is connected to, or None for one that resolvers may read in several ways."""
    host = raw.lower().removesuffix(".")
    if ":" in host:
        number = IPv6Address(host)
        return None if "%" in host else str(number.ipv4_mapped or number)
    if not _HOST.fullmatch(host):
        return None
    # The C library takes 127.1, 0x7f000001 and 017700000001 for numbers, too.
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        return str(IPv4Address(host))
    return host


def _climbs(path: str) -> bool:
    """Whether a path has `.` or `..` as a segment, however often it is escaped; `..;x` is one to some servers."""
    for _ in range(_DECODINGS):
        if any(segment.partition(";")[0] in (".", "..") for segment in re.split(r"[/\\]", path)):
            return True
        path, before = unquote(path), path
        if path == before:
            return False
    return True


def is_public(ip: str) -> bool:
    """Whether an IP address is one of the public internet, by itself and by the IPv4 address that it may carry.

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
    """The prefixes that an operator has named.

    Attributes:
        prefixes: Addresses whose path is a folder, if it ends in a slash, else a folder or one address. `http://` and
            `https://` have no host: they are all public addresses, as without any prefix.
    """

    prefixes: tuple[Address, ...] = ()

    @classmethod
    def of(cls, allow: Iterable[str], called: str = "allow") -> Allowed:
        """Check the prefixes as they were given.

        Args:
            allow: The prefixes.
            called: How the caller names the option.

        Raises:
            OptionError: One of them is no prefix of addresses.
        """
        if isinstance(allow, str) or not isinstance(allow, Iterable):
            raise OptionError(f"{called}: expected a list of prefixes, found {allow!r}; write [{str(allow)!r}]")
        return cls(tuple(_prefix(text, called) for text in allow))

    def permits(self, address: Address) -> bool:
        """Whether an address lies below a prefix; http(s) to a public host if no prefix was named."""
        if address.scheme not in WEB:
            return any(_is_below(address, prefix) for prefix in self.prefixes)
        own = [prefix for prefix in self.prefixes if (prefix.host, prefix.port) == (address.host, address.port)]
        # A host that has prefixes of its own is read below these alone, whatever else is allowed.
        if own:
            return any(_is_below(address, prefix) for prefix in own)
        if self.prefixes and Address(address.scheme, "", 0, "") not in self.prefixes:
            return False
        return is_public(address.host) if _is_number(address.host) else not _is_local_name(address.host)

    def reaches(self, host: str, port: int, ip: str) -> bool:
        """Whether a connection for a permitted address of a host may go to an IP address that its name resolves to.

        To one that is not public only if a prefix names it as well as the name, which is a stranger's to point
        anywhere. A name that no stranger can register stands for itself.
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
    """One prefix of `allow`."""
    found = _fault(text)
    if found is not None:
        raise OptionError(
            f"{called} {text!r}: expected the beginning of addresses, such as s3://bucket/photos/, "
            f"/Volumes/main/photos/ or https://, found {found}; name a folder, a bucket or a host in full"
        )
    given = home(text)
    if given.lower() in ("http://", "https://"):
        return Address(given.lower().removesuffix("://"), "", 0, "")
    address = spellings(given)[-1]
    # A local path is normalised, which takes the slash at its end away.
    return address if address.scheme == "file" else address._replace(path=address.path or "/", url=None)


def _fault(text: str) -> str | None:
    """What is wrong with a prefix, or None."""
    if not isinstance(text, str):
        return f"a {type(text).__name__}"
    if text != text.strip() or _CONTROL.search(text) or not text:
        return "white space at its ends, or a control character" if text.strip() else "an empty text"
    given = home(text)
    named = None if given.startswith("/") else _SCHEME.fullmatch(given)
    scheme = "" if named is None else named[1].lower()
    checks = (
        (scheme != "" and "::" in _IN_BRACKETS.sub("", given), "a chain of addresses"),
        (not given.startswith("/") and scheme == "", "neither a scheme nor a path from the root"),
        ("?" in given or (scheme in WEB and "#" in given), "a query, a fragment or a pattern"),
        (bool(set("*{}") & set(given)) or (scheme != "" and "[" in _IN_BRACKETS.sub("", given)), "a pattern"),
        (_climbs(given), "'.' or '..' in its path"),
        (scheme in _WRAPPERS, f"the scheme {scheme}, which opens other addresses or keeps copies of them"),
        (scheme not in ("", "file", *WEB) and scheme not in _known(), _unknown(scheme)),
        (given.lower() in ("http://", "https://"), None),
        (scheme not in ("", "file", "dbfs") and given.rstrip("/").endswith(":"), "no bucket and no host"),
        (not spellings(given), "no address that can be read (a user's name, or a host in an odd spelling)"),
    )
    return next((found for is_wrong, found in checks if is_wrong), None)


def _known() -> list[str]:
    """Schemes that fsspec knows here, those that were registered by this process among them."""
    return [name for name in (*fsspec.available_protocols(), *fsspec.registry) if name not in _WRAPPERS]


def _unknown(scheme: str) -> str:
    known = sorted(set(_known()))
    return f"the scheme {scheme}, which fsspec does not know ({nearest(scheme, known)})"
