"""Mutation job: breaks the kernels one place at a time and expects the tests to notice.

Operators: drop a barrier, fence or FreeTensor; skip a queue; shift one stride, mask, count or offset; let a loop run
one step further; take the first operand of a minimum. A survivor must be listed in kernels/surviving_mutants.json
with the reason why it changes nothing; any other survivor, and any listed one that is killed, fails the job.

    python tests/kernels/mutants.py [--only FILE ...] [--match REGEX] [--list]
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_model import BUILD, ROOT

KERNELS, TESTS, WORK = ROOT / "kernels", ROOT / "tests" / "kernels", BUILD / "mutants"
SURVIVORS = KERNELS / "surviving_mutants.json"
FLAGS = ("-std=c++17", "-O0", "-w", "-fPIC", "-pthread")
SECONDS = 120  # per mutant; an endless loop counts as noticed

# file -> drivers whose tests execute it, with the expression that selects them
TARGETS = {
    "moe_gating.h": ("gating", "not backward"),
    "moe_gating_grad.h": ("gating", "backward"),
    "moe_capacity.h": ("permute", "capacity"),
    "moe_permute.h": ("permute", "permute_is or order"),
    "unowned_rows.h": ("permute", "permute_is or combine_grad"),
    "moe_combine.h": ("permute", "combine and not grad"),
    "moe_combine_grad.h": ("permute", "combine_grad"),
    "swiglu.h": ("swiglu", ""),
    "swiglu_grad.h": ("swiglu", "backward"),
    "attention.h": ("attention", "forward or extreme"),
    "attention_visibility.h": ("attention", "oracle"),
    "attention_delta.h": ("attention", "backward"),
    "attention_sink.h": ("attention", "epilogue"),
    "attention_grad_tile.h": ("attention", "backward"),
    "attention_grad_query.h": ("attention", "backward"),
    "attention_grad_key_value.h": ("attention", "backward"),
    "rows.h": ("attention", "oracle or epilogue"),
    "common.h": ("permute", ""),
}
SHIFTED = ("BinaryRepeatParams", "BrcbRepeatParams", "GatherMaskParams", "DataCopyExtParams")
LAST_ARGUMENTS = {
    "WholeReduceSum": 5,
    "WholeReduceMax": 6,
    "BlockReduceSum": 4,
    "BlockReduceMax": 4,
    "CopyIn": 1,
    "CopyOut": 1,
    "Sort32": 1,
    "Gather": 2,
    "FirstOfBlocks": 1,
    "SetOrgShape": 5,
    "SetTail": 3,
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: `key` names it independently of line numbers."""

    file: str
    operator: str
    line: int
    statement: str
    occurrence: int
    text: str

    @property
    def key(self) -> str:
        return f"{self.file}: {self.operator}: {self.statement} #{self.occurrence}"


def arguments(source: str, start: int) -> list[tuple[int, int]]:
    """Spans of the top-level arguments of the call whose parenthesis opens at `start`."""
    spans, depth, begin = [], 0, start + 1
    for i in range(start, len(source)):
        depth += source[i] in "([{"
        depth -= source[i] in ")]}"
        if (source[i] == "," and depth == 1) or depth == 0:
            spans.append((begin, i))
            begin = i + 1
        if depth == 0:
            break
    return [(a, b) for a, b in spans if source[a:b].strip()]


def edits(source: str) -> Iterator[tuple[str, int, int, str]]:
    """(operator, start, end, replacement) of every mutation of a file."""
    for m in re.finditer(r"(PipeBarrier|Fence|SyncAll)<[\w:]+>\(\);|\w+\.FreeTensor\(\w+\);", source):
        yield "drop", m.start(), m.end(), ""
    for m in re.finditer(r"(\w+)\.EnQue\((\w+)\);\s*\2 = \1\.(template )?DeQue<\w+>\(\);", source):
        yield "skip queue", m.start(), m.end(), ""
    for m in re.finditer(r"\b(\w+)\(", source):
        name = m[1]
        if name in SHIFTED or name in LAST_ARGUMENTS:
            for a, b in arguments(source, m.end() - 1)[-LAST_ARGUMENTS.get(name, 9) :]:
                if not re.search(r"ReduceOrder|\bmask\b|_t\b [a-z]|&", source[a:b]) or "static_cast" in source[a:b]:
                    yield f"{name} + 1", a, b, f" ({source[a:b].strip()}) + 1"
        if name == "Smaller":
            (a, b), *_ = arguments(source, m.end() - 1)
            yield "no minimum", m.start(), arguments(source, m.end() - 1)[-1][1] + 1, f"({source[a:b]})"
    for m in re.finditer(r"(Gm_?|Ws_?|row|sum|max_|fold|src|values)\[", source):
        for a, b in arguments(source, m.end() - 1):
            yield "offset + 8", a, b, f"({source[a:b].strip()}) + 8"
    for m in re.finditer(r"; (\w+) < ", source):
        yield "loop one further", m.start(), m.end(), f"; {m[1]} <= "


def mutants(file: str) -> list[Mutant]:
    """All mutants of one kernel header; declarations and comments are left alone."""
    source = (KERNELS / "op_kernel" / file).read_text()
    found, seen = [], {}
    for operator, start, end, replacement in edits(source):
        line_start = source.rfind("\n", 0, start) + 1
        line = source[line_start : source.find("\n", start)]
        if line.lstrip().startswith(("//", "__aicore__ inline")):
            continue
        detail = source[start:end].strip() if operator != "drop" else ""
        statement = " ".join((line.strip() + (f" @ {detail}" if detail and detail != line.strip() else "")).split())
        seen[operator, statement] = seen.get((operator, statement), 0) + 1
        found.append(
            Mutant(
                file,
                operator,
                source.count("\n", 0, start) + 1,
                statement,
                seen[operator, statement],
                source[:start] + replacement + source[end:],
            )
        )
    return found


def prepare() -> Path:
    """A work folder with the driver sources and their precompiled common header."""
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "op_kernel").mkdir(parents=True)
    for folder in ("host_model", "tiling"):
        (WORK / folder).symlink_to(KERNELS / folder)
    for path in [TESTS / "driver.h", *TESTS.glob("drive_*.cpp")]:
        shutil.copy(path, WORK)
    includes = [f"-I{WORK}", f"-I{WORK / 'host_model'}"]
    command = ["g++", *FLAGS, *includes, "-x", "c++-header", "driver.h", "-o", "driver.h.gch"]
    subprocess.run(command, cwd=WORK, check=True)
    return WORK


def run_tests(driver: str, library: Path, selection: str) -> int:
    """Exit status of the tests in a forked child, which keeps the imports: 0 means the mutant survived."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        os.environ["MINDMOE_KERNEL_LIBRARY"] = str(library)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        status = pytest.main(
            [
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:faulthandler",
                "--no-header",
                "-k",
                selection,
                str(TESTS / f"test_{driver}.py"),
            ]
        )
        os._exit(int(status))
    return os.waitpid(child, 0)[1]


def survives(mutant: Mutant | None) -> bool:
    """Whether the tests of the mutated file pass; None checks the unchanged sources of every file."""
    for path in [*(KERNELS / "op_kernel").glob("*.h"), *(KERNELS / "op_kernel").glob("*.cpp")]:
        shutil.copy(path, WORK / "op_kernel")
    file = mutant.file if mutant else ""
    if mutant:
        (WORK / "op_kernel" / file).write_text(mutant.text)
    for driver, selection in [TARGETS[file]] if mutant else dict.fromkeys((d, "") for d, _ in TARGETS.values()):
        library = WORK / f"{driver}.so"
        command = [
            "g++",
            *FLAGS,
            "-shared",
            f"-I{WORK}",
            f"-I{WORK / 'host_model'}",
            f"-I{WORK / 'op_kernel'}",
            f"drive_{driver}.cpp",
            "-o",
            str(library),
        ]
        if subprocess.run(command, cwd=WORK, capture_output=True).returncode or run_tests(driver, library, selection):
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="FILE", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--match", default="", metavar="REGEX", help="mutants whose key matches")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    options = parser.parse_args()
    chosen = [m for file in options.only for m in mutants(file) if re.search(options.match, m.key)]
    if options.list:
        print("\n".join(m.key for m in chosen), f"\n{len(chosen)} mutants")
        return 0
    explained: dict[str, str] = json.loads(SURVIVORS.read_text())
    prepare()
    assert survives(None), "the tests fail on the unchanged kernels"
    unexplained, stale, killed, start = [], [], 0, time.monotonic()
    for number, mutant in enumerate(chosen, 1):
        alive = survives(mutant)
        killed += not alive
        if alive and mutant.key not in explained:
            unexplained.append(mutant)
            print(f"SURVIVED {mutant.file}:{mutant.line} {mutant.key}", flush=True)
        if not alive and mutant.key in explained:
            stale.append(mutant.key)
        if number % 25 == 0:
            print(f"{number}/{len(chosen)}, {killed} killed, {time.monotonic() - start:.0f} s", flush=True)
    known = {m.key for file in options.only for m in mutants(file)}
    stale += [key for key in explained if key.split(":")[0] in options.only and key not in known]
    print(
        f"{len(chosen)} mutants, {killed} killed, {len(chosen) - killed - len(unexplained)} explained, "
        f"{len(unexplained)} unexplained, {time.monotonic() - start:.0f} s"
    )
    for key in stale:
        print(f"listed in {SURVIVORS.name} but no survivor: {key}")
    return int(bool(unexplained or stale))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
