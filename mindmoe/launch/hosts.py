"""The hosts file of a cluster: one node a line, its name and, where the name is not reachable, its address.

# comment
node-01
node-02  address=10.0.0.2
"""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from mindmoe.host.errors import ConfigError, UserError
from mindmoe.host.files import read_text, shown

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMBER = r"(0[xX][0-9A-Fa-f]*|[0-9]+)"
_NUMBERS = re.compile(rf"{_NUMBER}(\.{_NUMBER})*")  # what resolvers take for an address
_SCOPE = re.compile(r"[A-Za-z0-9._-]{1,64}")  # of a link-local address, the interface
_MAX_NAME = 253
_MAX_HOSTS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A node: the name it is logged into by, and the name or address that other nodes connect to."""

    name: str
    address: str


def read_hosts(path: Path) -> list[Host]:
    """The nodes of a hosts file, in its order.

    Raises:
        UserError: the file cannot be read or names no host.
        ConfigError: everything that is wrong with its lines.
    """
    lines = read_text(path, 100 * _MAX_HOSTS).splitlines()
    if len(lines) > _MAX_HOSTS:
        raise UserError(f"the hosts file {path} has more than {_MAX_HOSTS} lines", "give one host a line")
    hosts: list[Host] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            host = _host(words)
        except UserError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        for text in {_same(host.name): host.name, _same(host.address): host.address}.values():
            if first := seen.get(_same(text)):
                problems.append(f"{path}:{number}: {text} stands in line {first} already: name each node once")
            seen.setdefault(_same(text), number)
        hosts.append(host)
    if problems:
        raise ConfigError(problems)
    if not hosts:
        raise UserError(f"the hosts file {path} names no host", "write one host a line")
    return hosts


def is_host(text: str) -> bool:
    """Whether a text is the name of a host or an address; numbers that are no address are neither."""
    if _NUMBERS.fullmatch(text) or ":" in text:
        return _address(text) is not None
    return len(text) <= _MAX_NAME and _NAME.fullmatch(text) is not None


def _host(words: list[str]) -> Host:
    name, address = words[0], words[0]
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key != "address" or not equals or len(words) > 2:
            raise UserError(f"'{shown(word)}' is no setting of a host", "write NAME, or NAME address=ADDRESS")
        address = value
    for text in (name, address):
        if not is_host(text):
            raise UserError(f"'{shown(text)}' is neither a host name nor an IP address", "correct it")
    return Host(name=name, address=address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    scope = getattr(address, "scope_id", None)
    return address if scope is None or _SCOPE.fullmatch(scope) else None


def _same(text: str) -> str:
    """What two spellings of one host have in common: resolvers tell no case, and addresses are written in many ways."""
    address = _address(text)
    return str(getattr(address, "ipv4_mapped", None) or address or text).lower()
