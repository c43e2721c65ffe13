"""`mindmoe doctor`: what this machine has, what is missing, and the command that gets it.

It must run where things are missing, so only the standard library is needed at import time. The pins are those
of the package's own metadata, or of pyproject.toml in a source tree: they are written in one place.
"""

import importlib
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Literal

from mindmoe.host.env import usable_cores
from mindmoe.observe.environment import SOURCE_TREE, cpu_model, disk_rate, memory, version

_LITTLE_MEMORY = 4 * 2**30  # [bytes]
_LITTLE_DISK = 5 * 2**30  # [bytes]
_IMPORT_TIMEOUT = 300  # [s], the first import after an installation is slow


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table. `note` is no obstacle; `missing` is one."""

    name: str
    status: Literal["ok", "note", "missing"]
    found: str
    remedy: str = ""


def main() -> int:
    """Prints the table; returns 1 if something that training needs is missing, else 0."""
    results = list(checks(Path.cwd()))
    _show(results)
    missing = [result.name for result in results if result.status == "missing"]
    print(f"missing: {', '.join(missing)}" if missing else "everything that training needs is here")
    return 1 if missing else 0


def checks(folder: Path) -> Iterator[Check]:
    """Every check, in the order of the table.

    Args:
        folder: where runs are going to be written.
    """
    yield from check_packages(*requirements())
    if version("mindspore"):
        yield check_mindspore()
    yield check_device(Path("/dev"), Path("/usr/local/Ascend"), os.environ.get("ASCEND_HOME_PATH", ""))
    yield check_processor()
    yield check_memory(memory("MemAvailable"))
    yield check_disk(folder)
    yield check_port()
    yield check_msrun(Path(sys.executable).parent, shutil.which("msrun"))
    yield check_compiler(shutil.which("g++"))


def requirements() -> tuple[str, list[str]]:
    """The range of Python versions and the requirements of mindmoe, as PEP 508 texts; empty if unknown."""
    try:
        own = metadata.metadata("mindmoe")
        return own["Requires-Python"] or "", metadata.requires("mindmoe") or []
    except metadata.PackageNotFoundError:
        pass
    try:
        toml = importlib.import_module("tomllib")  # from Python 3.11 on
        project = toml.loads((SOURCE_TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (ImportError, OSError):
        return "", []
    extras = project["optional-dependencies"].items()
    optional = [f"{line}; extra == '{extra}'" for extra, lines in extras for line in lines]
    return project["requires-python"], project["dependencies"] + optional


def check_packages(python: str, pins: list[str]) -> Iterator[Check]:
    """Python and every package against the pins; extras are one line each."""
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:
        yield Check("packaging", "missing", "not installed", _pip("packaging"))
        return
    if not pins:
        yield Check("mindmoe", "note", "not installed, its pins are unknown", _pip("--editable ."))
        return
    fits = SpecifierSet(python).contains(platform.python_version())
    found = f"{platform.python_version()} (needs {python})"
    yield Check("Python", "ok" if fits else "missing", found, "" if fits else "use Python 3.11, the tested one")
    extras: dict[str, list[str]] = {}
    for pin in map(Requirement, pins):
        extra = next((name for name in _extras(pins) if pin.marker and pin.marker.evaluate({"extra": name})), "")
        installed = version(pin.name)
        fits = installed is not None and pin.specifier.contains(installed, prereleases=True)
        if extra:
            extras.setdefault(extra, []).extend([] if fits else [f"{pin.name} {installed or ''}".strip()])
            continue
        wanted = f"{pin.name}{pin.specifier}"
        found = f"{installed or 'not installed'} (needs {pin.specifier})"
        yield Check(pin.name, "ok" if fits else "missing", found, "" if fits else _pip(wanted))
    for extra, lacking in extras.items():
        found = f"lacks {', '.join(lacking)}" if lacking else "installed"
        source = f"--editable .[{extra}]" if (SOURCE_TREE / "pyproject.toml").exists() else f"mindmoe[{extra}]"
        yield Check(f"extra {extra}", "note" if lacking else "ok", found, _pip(source) if lacking else "")


def _extras(pins: list[str]) -> list[str]:
    """The names after `extra ==` in the markers, in order."""
    quoted = (pin.partition("extra ==")[2].strip(" '\"") for pin in pins)
    return list(dict.fromkeys(name for name in quoted if name))


def _pip(what: str) -> str:
    words = " ".join(f"'{word}'" if any(c in word for c in "<>=[]") else word for word in what.split(" "))
    return f"{Path(sys.executable).name} -m pip install {words}"


def check_mindspore() -> Check:
    """Whether MindSpore can be imported, in a process of its own."""
    start = perf_counter()
    command = [sys.executable, "-c", "import mindspore"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_TIMEOUT)
    except subprocess.TimeoutExpired:
        return Check(
            "import mindspore", "missing", f"no answer in {_IMPORT_TIMEOUT} s", "try it again on a quiet machine"
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Check("import mindspore", "missing", reason[:200], "install mindspore again, see the line to the left")
    return Check("import mindspore", "ok", f"works, took {perf_counter() - start:.1f} s")


def check_device(devices: Path, toolkit: Path, home: str) -> Check:
    """Ascend NPUs with driver and CANN, or the CPU."""
    cards = len(list(devices.glob("davinci[0-9]*")))
    cann = bool(home) or toolkit.is_dir()
    if cards and cann:
        return Check("device", "ok", f"{cards} Ascend NPUs, CANN found", "set train.device=ascend to use them")
    if cards:
        return Check("device", "note", f"{cards} Ascend NPUs, but no CANN", "install CANN and source its set_env.sh")
    return Check("device", "ok", "no Ascend NPU found: the CPU backend will be used")


def check_processor() -> Check:
    """The cores that MindSpore's threads may use."""
    usable, total = usable_cores(), os.cpu_count() or 1
    return Check("processor", "ok", f"{cpu_model() or 'unknown'}, {usable} of {total} cores usable")


def check_memory(available: int | None) -> Check:
    """Free memory [bytes]."""
    if available is None:
        return Check("memory", "note", "unknown on this system")
    enough = available >= _LITTLE_MEMORY
    found = f"{available / 2**30:.1f} GiB available"
    return Check(
        "memory", "ok" if enough else "note", found, "" if enough else "close other programs: runs need 2 GiB a rank"
    )


def check_disk(folder: Path) -> Check:
    """Free space and durable write speed where runs go."""
    free = shutil.disk_usage(folder).free
    try:
        rate = disk_rate(folder)
    except OSError as error:
        return Check(
            "disk", "missing", f"cannot write here: {error.strerror}", "go to a folder you may write, or free space"
        )
    found = f"{free / 2**30:.1f} GiB free here, writes {rate / 1e6:,.0f} MB/s with fsync"
    enough = free >= _LITTLE_DISK
    return Check("disk", "ok" if enough else "note", found, "" if enough else "free some space: checkpoints need it")


def check_port() -> Check:
    """Whether ranks can meet on this machine."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    except OSError as error:
        return Check("network", "missing", f"cannot open a local port: {error.strerror}", "allow TCP on 127.0.0.1")
    return Check("network", "ok", f"local ports can be opened, {port} for example")


def check_msrun(own: Path, on_path: str | None) -> Check:
    """MindSpore's launcher, which comes with the package, beside this interpreter."""
    if not (own / "msrun").exists():
        return Check("msrun", "missing", "not beside this interpreter", _pip("--force-reinstall --no-deps mindspore"))
    if on_path is None or Path(on_path).resolve() != (own / "msrun").resolve():
        remedy = "activate the environment to use it by hand; mindmoe launch finds its own"
        return Check("msrun", "note", "another one, or none, comes first on PATH", remedy)
    return Check("msrun", "ok", "beside this interpreter")


def check_compiler(path: str | None) -> Check:
    """g++, which builds the fast CPU operators at first use."""
    if path is None:
        remedy = "install g++ (Debian, Ubuntu: apt install g++)"
        return Check("g++", "note", "not found: plain MindSpore operators will be used, which are slower", remedy)
    done = subprocess.run([path, "-dumpfullversion"], capture_output=True, text=True, timeout=30)
    return Check("g++", "ok", done.stdout.strip() or "found")


def _show(results: list[Check]) -> None:
    """The table; plain lines where rich is among what is missing."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        for result in results:
            print(
                f"{result.status:>8}  {result.name}: {result.found}" + (f" -> {result.remedy}" if result.remedy else "")
            )
        return
    table = Table(title="mindmoe doctor", title_justify="left")
    for column in ("", "check", "found", "what to do"):
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "note": "yellow", "missing": "bold red"}
    for result in results:
        mark = Text(result.status, colours[result.status])
        table.add_row(mark, Text(result.name), Text(result.found), Text(result.remedy))
    Console().print(table)
