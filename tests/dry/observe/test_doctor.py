"""Each check with what it should find and what it should miss."""

import errno
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.specifiers import SpecifierSet

from mindmoe.observe import doctor, environment
from mindmoe.observe.doctor import Check


def by_name(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_packages_against_pins() -> None:
    pins = ["numpy<1", "pydantic>=2", "no-such-package>=1,<2", 'numpy>=1; extra == "a"', "nothing-here; extra == 'b'"]
    found = by_name(doctor.check_packages(">=3.10", pins))
    assert found["Python"].status == found["pydantic"].status == found["extra a"].status == "ok"
    assert found["numpy"].status == "missing" and found["numpy"].found == f"{np.__version__} (needs <1)"
    assert found["numpy"].remedy.endswith("-m pip install 'numpy<1'")
    assert found["no-such-package"].found == "not installed (needs <2,>=1)"
    assert found["extra b"] == Check("extra b", "note", "lacks nothing-here", found["extra b"].remedy)
    assert "[b]'" in found["extra b"].remedy
    assert by_name(doctor.check_packages("<3", pins))["Python"].status == "missing"


def test_numpy_2_is_named_as_what_breaks_mindspore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "2.1.0")
    python, pins = doctor.requirements()
    found = by_name(doctor.check_packages(python, pins))
    assert found["numpy"].status == "missing" and "'numpy" in found["numpy"].remedy


def test_pins_are_those_of_the_project(root: Path) -> None:
    python, pins = doctor.requirements()
    text = (root / "pyproject.toml").read_text()
    wanted = re.search(r'requires-python = "(.*)"', text)
    assert wanted and SpecifierSet(python) == SpecifierSet(wanted[1])  # installed metadata orders the clauses anew
    assert any(pin.startswith("mindspore") for pin in pins)
    assert {"hf", "dev"} <= set(doctor._extras(pins))


def test_unknown_pins() -> None:
    assert by_name(doctor.check_packages("", []))["mindmoe"].status == "note"


def test_import_of_mindspore(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mindspore.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor.check_mindspore().status == "ok"
    (tmp_path / "mindspore.py").write_text("raise ImportError('libgomp.so.1 is missing')")
    broken = doctor.check_mindspore()
    assert broken.status == "missing" and "libgomp.so.1 is missing" in broken.found


def test_device(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert "CPU backend" in doctor.check_device(tmp_path, nowhere, "").found
    for index in range(8):
        (tmp_path / f"davinci{index}").touch()
    (tmp_path / "davinci_manager").touch()
    assert doctor.check_device(tmp_path, nowhere, "").status == "note"
    for toolkit, home in ((tmp_path, ""), (nowhere, "ascend")):
        assert doctor.check_device(tmp_path, toolkit, home).found == "8 Ascend NPUs, CANN found"


def test_memory() -> None:
    assert doctor.check_memory(2**30).status == doctor.check_memory(None).status == "note"
    assert doctor.check_memory(2**35) == Check("memory", "ok", "32.0 GiB available")


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PROBE", 2**20)
    assert "MB/s" in doctor.check_disk(tmp_path).found
    assert list(tmp_path.iterdir()) == []

    def refuse(**_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert doctor.check_disk(tmp_path).status == "missing"


def test_port(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_port().status == "ok"

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert doctor.check_port().status == "missing"


def test_msrun(tmp_path: Path) -> None:
    assert doctor.check_msrun(tmp_path, None).status == "missing"
    (tmp_path / "msrun").touch()
    assert doctor.check_msrun(tmp_path, None).status == "note"
    assert doctor.check_msrun(tmp_path, str(tmp_path / "other" / "msrun")).status == "note"
    assert doctor.check_msrun(tmp_path, str(tmp_path / "msrun")).status == "ok"


def test_compiler(tmp_path: Path) -> None:
    assert doctor.check_compiler(None).status == "note"
    (tmp_path / "g++").write_text("#!/bin/sh\necho 12.2.0\n")
    (tmp_path / "g++").chmod(0o755)
    assert doctor.check_compiler(str(tmp_path / "g++")) == Check("g++", "ok", "12.2.0")


@pytest.mark.parametrize("status, code", [("ok", 0), ("note", 0), ("missing", 1)])
def test_exit_code_and_table(
    status: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = Check("thing", status, "found [bold]it", "do [red]that")
    monkeypatch.setattr(doctor, "checks", lambda folder: iter([check]))
    assert doctor.main() == code
    shown = capsys.readouterr().out
    assert "found [bold]it" in shown and "do [red]that" in shown
    assert ("missing: thing" in shown) == bool(code)


def test_it_runs_where_everything_is_missing(root: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('rich', 'packaging', 'numpy', 'pydantic', 'mindspore'): sys.modules[name] = None\n"
        "from mindmoe.observe import doctor\n"
        "doctor.check_mindspore = lambda: doctor.Check('import mindspore', 'missing', 'no')\n"
        "sys.exit(doctor.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 1, done.stderr
    assert " missing  packaging: not installed -> " in done.stdout
