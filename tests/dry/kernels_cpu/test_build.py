"""Building the CPU pack: once per source, compiler and flags, by any number of ranks, with clear errors."""

import ctypes
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from mindmoe.host.errors import UserError
from mindmoe.ops.cpu import build

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of one function instead of ours, and a cache of its own."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.cc").write_text('extern "C" __attribute__((visibility("default"))) int answer() { return 41; }\n')
    monkeypatch.setattr(build, "source_folder", lambda: folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_a_second_call_finds_the_first_build(sources):
    path = build.library("portable")
    stamp = path.stat().st_mtime_ns
    assert ctypes.CDLL(str(path)).answer() == 41
    assert build.library("portable") == path and path.stat().st_mtime_ns == stamp
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_a_changed_source_is_a_new_library(sources):
    before = build.library("portable")
    file = sources / "answer.cc"
    file.write_text(file.read_text().replace("41", "42"))
    after = build.library("portable")
    assert after != before and ctypes.CDLL(str(after)).answer() == 42
    (sources / "note.h").write_text("// a header counts as well\n")
    assert build.library("portable") != after


def test_flags_and_compiler_are_part_of_the_name(sources, tmp_path):
    names = {build._digest(sources, "c++", flags) for flags in ((), ("-O2",))}
    wrapper = tmp_path / "other"
    wrapper.write_text("#!/bin/sh\necho another compiler\n")
    wrapper.chmod(0o755)
    assert len(names | {build._digest(sources, str(wrapper), ())}) == 3


def _build(number: int) -> str:
    return str(build.library("portable"))


def test_concurrent_ranks_build_once(sources, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    wrapper = tmp_path / "counting"
    wrapper.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo call >> {calls}\nexec c++ "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", str(wrapper))
    with multiprocessing.get_context("fork").Pool(4) as ranks:
        assert len(set(ranks.map(_build, range(4)))) == 1
    assert len(calls.read_text().splitlines()) == 2  # one source and the link


def test_a_compile_error_is_shown_and_leaves_nothing(sources):
    (sources / "answer.cc").write_text("int answer( { syntax\n")
    with pytest.raises(UserError, match=r"(?s)does not compile.*answer\.cc:1"):
        build.library("portable")
    assert [p.name for p in build.cache_folder().iterdir()] == ["lock"]


def test_no_compiler_is_a_clear_error(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"needs a C\+\+17 compiler.*install g\+\+"):
        build.library("portable")


def test_a_cache_that_cannot_be_written_is_a_clear_error(sources, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        build.library("portable")


def test_the_best_instruction_set_comes_first(monkeypatch):
    full = {"avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}
    for features, best in ((full | {"amx_tile", "amx_bf16"}, "amx"), (full, "avx512_bf16"),
                           (full - {"avx512_bf16"}, "avx512"), ({"avx2"}, "portable"), (full - {"avx512f"}, "avx2"),
                           (set(), "portable")):  # fmt: skip
        monkeypatch.setattr(build, "_cpu_features", lambda features=features: features)
        assert build.supported_isas()[0] == best
        assert build.supported_isas()[-1] == "portable"


def test_an_instruction_set_that_the_compiler_does_not_know_is_passed_over(monkeypatch):
    monkeypatch.setattr(build, "supported_isas", lambda: ["amx", "portable"])
    monkeypatch.setitem(build.ISA_FLAGS, "amx", ("-mno-such-set",))
    assert build.best_isa() == "portable"


@pytest.mark.parametrize(("features", "fast"), [
    ({"avx512_bf16", "GenuineIntel"}, False), ({"avx512_bf16", "amx_bf16", "GenuineIntel"}, True),
    ({"avx512_bf16", "AuthenticAMD"}, True), ({"avx2", "AuthenticAMD"}, False), (set(), False)])  # fmt: skip
def test_where_bf16_products_are_fast(monkeypatch, features, fast):
    monkeypatch.setattr(build, "_cpu_features", lambda: features)
    assert build.fast_bf16() is fast


def test_sources_are_found_in_the_repository(root):
    assert build.source_folder() == root / "kernels" / "cpu" / "src"


def test_sources_stay_small(root):
    for file in sorted((root / "kernels" / "cpu").rglob("*.[ch]*")):
        if "build" not in file.parts:
            assert len(file.read_text().splitlines()) < 300, file


def _marked(path: Path) -> None:
    """Makes a library one that must not be loaded."""
    path.write_bytes(b"somebody else's")


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_pack_that_others_may_have_written_is_not_loaded(sources, tmp_path, monkeypatch, caplog, level, mode):
    """`level` counts from the library up to the folder that XDG_CACHE_HOME names."""
    monkeypatch.setattr(build, "_is_private_group", lambda _: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    first = build.library("portable")
    _marked(first)
    place = [first, *first.parents][level]
    place.chmod(mode)
    assert build.built("portable") is None
    again = build.library("portable")
    assert ctypes.CDLL(str(again)).answer() == 41 and "may be written by others" in caplog.text
    assert (again == first) == (level < 2)  # a folder that is exposed as a whole is left alone
    assert build.library("portable") == build.built("portable") == again and not build.exposed(again)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
def test_a_pack_of_another_user_is_not_loaded(sources, tmp_path, monkeypatch, level):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    first = build.library("portable")
    _marked(first)
    os.chown([first, *first.parents][level], 12345, -1)
    assert build.built("portable") is None
    assert ctypes.CDLL(str(build.library("portable"))).answer() == 41


def test_a_link_in_the_cache_is_judged_by_what_it_points_to(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_is_private_group", lambda _: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    first = build.library("portable")
    _marked(first)
    open_folder = tmp_path / "open"
    first.parent.rename(open_folder)
    open_folder.chmod(0o777)
    first.parent.symlink_to(open_folder)
    assert ctypes.CDLL(str(build.library("portable"))).answer() == 41


@pytest.mark.parametrize(("mode", "why"), [(0o1777, ""), (0o777, "may be written by others"), (0o755, "")])
def test_a_sticky_folder_above_the_cache_is_safe(tmp_path, monkeypatch, mode, why):
    monkeypatch.setattr(build, "_is_private_group", lambda _: False)
    file = tmp_path / "shared" / "mindmoe" / "cpu" / "portable" / "pack.so"
    file.parent.mkdir(parents=True, mode=0o700)
    file.touch(mode=0o700)
    (tmp_path / "shared").chmod(mode)
    for folder in list(file.parents)[:3]:
        folder.chmod(0o700)
    assert (why in build.exposed(file)) and bool(build.exposed(file)) == bool(why)


def test_without_a_safe_place_nothing_is_loaded(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_is_private_group", lambda _: False)
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cache"))
    (tmp_path / "cache").chmod(0o777)  # without the sticky bit
    with pytest.raises(UserError, match=r"no library is loaded from there.*XDG_CACHE_HOME"):
        build.library("portable")
