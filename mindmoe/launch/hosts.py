"""The hosts file of a cluster: one node a line, its name and, where the name is not reachable, its address.

# comment
node-01
node-02  address=10.0.0.2
"""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from mindmoe.errors import ConfigError, UserError

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read the hosts file {path}: {reason}", "give a text file of one host a line") from None
    hosts: list[Host] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines[:_MAX_HOSTS], 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            host = _host(words)
        except UserError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        for key in {host.name, host.address}:
            if key in seen:
                problems.append(f"{path}:{number}: {key} stands in line {seen[key]} already: name each node once")
            seen[key] = number
        hosts.append(host)
    if problems:
        raise ConfigError(problems)
    if not hosts:
        raise UserError(f"the hosts file {path} names no host", "write one host a line")
    return hosts


def _host(words: list[str]) -> Host:
    name, address = words[0], words[0]
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key != "address" or not equals or len(words) > 2:
            raise UserError(f"{word!r} is no setting of a host", "write NAME, or NAME address=ADDRESS")
        address = value
    for text in (name, address):
        if not _NAME.fullmatch(text) and not _is_address(text):
            raise UserError(f"{text!r} is neither a host name nor an IP address", "correct it")
    return Host(name=name, address=address)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
