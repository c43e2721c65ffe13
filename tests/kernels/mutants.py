"""Mutation job: breaks the kernels and the host model one place at a time and expects the tests to notice.

Operators on kernels: drop a barrier, fence or FreeTensor; skip a queue; shift one stride, mask, count, index or base
address; let a loop run one step further; shift the boundary of a comparison; take the first operand of a minimum. On
the host model: drop a check. A survivor must be listed in kernels/surviving_mutants.json with the reason why it changes
nothing; any other survivor, and any listed one that is killed, fails the job. A mutant that does not compile says
nothing and is counted apart.

Verdicts are kept in build/kernels/mutants.txt under a digest of what they depend on, so an interrupted job goes on
where it stopped and a change repeats what it touches. New tests repeat survivors only: a mutant once killed stays so
until its sources change. Remove the file after weakening a test.

    python tests/kernels/mutants.py [--jobs N] [--only FILE ...] [--match REGEX] [--list]
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import pytest
from host_model import BUILD, ROOT

Verdict = Literal["killed", "survived", "invalid"]

KERNELS, TESTS, WORK = ROOT / "kernels", ROOT / "tests" / "kernels", BUILD / "mutants"
SURVIVORS, VERDICTS = KERNELS / "surviving_mutants.json", BUILD / "mutants.txt"
FLAGS = ("-std=c++17", "-O0", "-w", "-fPIC", "-pthread")
SECONDS = 600  # of processor for the tests of unchanged sources
PATIENCE = 3  # a mutant gets so many times what these took; an endless loop counts as noticed

# file -> drivers whose tests execute it, with the expression that selects them
TARGETS = {
    "moe_gating.h": ("gating", "not backward"),
    "moe_gating_grad.h": ("gating", "backward"),
    "moe_logits.h": ("gating", ""),
    "moe_capacity.h": ("permute", "capacity"),
    "moe_permute.h": ("permute", "permute_is"),
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
    "detail/copy.h": ("model", ""),
    "detail/machine.h": ("model", ""),
    "detail/matmul.h": ("model", ""),
    "detail/sort.h": ("model", ""),
    "detail/sync.h": ("model", ""),
    "detail/tensor.h": ("model", ""),
    "detail/vector.h": ("model", ""),
}
# the same for files of which that driver does not execute all: asked about what survives it
SECOND = {"common.h": ("gating", "backward")}
# Parameters that are all shifted, and calls of which the last arguments are.
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
FIRST_ARGUMENTS = ("GetValue", "SetValue", "SetGlobalBuffer")
COUNTED = frozenset(
    ("Add", "Adds", "Axpy", "Cast", "CreateVecIndex", "Div", "Duplicate", "Exp", "FromFloat", "Ln", "Max", "Maxs")
    + ("Mins", "Mul", "Muls", "Select", "ShiftRight", "SpreadRows", "Sub", "SumOf", "ToFloat")
)


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


def shifts_of_call(source: str, name: str, start: int) -> Iterator[tuple[str, int, int, str]]:
    """(operator, start, end, replacement) of every shifted argument of the call of `name`."""
    spans = arguments(source, start)
    if name in SHIFTED or name in LAST_ARGUMENTS:
        for a, b in spans[-LAST_ARGUMENTS.get(name, 9) :]:
            if not re.search(r"ReduceOrder|\bmask\b|_t\b [a-z]|&", source[a:b]) or "static_cast" in source[a:b]:
                yield f"{name} + 1", a, b, f" ({source[a:b].strip()}) + 1"
    elif name in FIRST_ARGUMENTS and spans:
        a, b = spans[0]
        yield f"{name} + 1", a, b, f"({source[a:b].strip()}) + 1"
    elif name in COUNTED and spans:
        a, b = spans[-1]
        if not re.search(r"Params|perRow|pieces|^\s*8$|[*&]|uint32_t", source[a:b]) or "static_cast" in source[a:b]:
            yield f"{name} - 1", a, b, f" ({source[a:b].strip()}) - 1"
    elif name == "Smaller":
        a, b = spans[0]
        yield "no minimum", source.rfind(name, 0, start), spans[-1][1] + 1, f"({source[a:b]})"


def edits(source: str) -> Iterator[tuple[str, int, int, str]]:
    """(operator, start, end, replacement) of every mutation of a file."""
    for m in re.finditer(r"(PipeBarrier|Fence|SyncAll)<[\w:]+>\(\);|\w+\.FreeTensor\(\w+\);", source):
        yield "drop", m.start(), m.end(), ""
    for m in re.finditer(r"(\w+)\.EnQue\((\w+)\);\s*\2 = \1\.(template )?DeQue<\w+>\(\);", source):
        yield "skip queue", m.start(), m.end(), ""
    for m in re.finditer(r"\b(\w+)\(", source):
        yield from shifts_of_call(source, m[1], m.end() - 1)
    for m in re.finditer(r"(?<!uint64_t )(?<!uint16_t )(?<!float )\b\w+\[", source):
        for a, b in arguments(source, m.end() - 1):
            step = 1 if source[a:b] == "0" else 8  # the first of the two words of a mask: far past it lies anything
            yield f"offset + {step}", a, b, f"({source[a:b].strip()}) + {step}"
    for m in re.finditer(r"; (\w+) < ", source):
        yield "loop one further", m.start(), m.end(), f"; {m[1]} <= "
    for m in re.finditer(r"(?<!; )\b([\w.\[\]()]+) (<|<=|>|>=) (?=\w)", source):
        if not re.search(r"; \w+ < $", source[: m.end()]):
            other = m[2][0] if len(m[2]) == 2 else f"{m[2]}="
            yield "boundary", m.start(), m.end(), f"{m[1]} {other} "


def dropped_checks(source: str) -> Iterator[tuple[str, int, int, str]]:
    """(operator, start, end, replacement) of every check of the host model that can be left out."""
    for m in re.finditer(r"^ +((?:host_model::)?(HOST_MODEL_REQUIRE|require\w+|check\w+|touch\w*)\()", source, re.M):
        end = arguments(source, m.end() - 1)[-1][1] + 1
        if source[end] == ";":
            yield "drop check", m.start(1), end + 1, ";"


def path_of(file: str) -> Path:
    """Where a target lies in kernels/."""
    return Path("host_model" if file.startswith("detail/") else "op_kernel") / file


def mutants(file: str) -> list[Mutant]:
    """All mutants of one header; declarations and comments are left alone."""
    source = (KERNELS / path_of(file)).read_text()
    found: list[Mutant] = []
    seen: Counter[tuple[str, str]] = Counter()
    for operator, start, end, replacement in (dropped_checks if file.startswith("detail/") else edits)(source):
        line_start = source.rfind("\n", 0, start) + 1
        line = source[line_start : source.find("\n", start)]
        if line.lstrip().startswith(("//", "#", "__aicore__ inline", "template")) or "//" in line[: start - line_start]:
            continue
        code = re.sub(r" *//.*", "", line.strip())
        detail = source[start:end].strip() if operator != "drop" else ""
        statement = " ".join((code + (f" @ {detail}" if detail and detail != code else "")).split())
        seen[operator, statement] += 1
        number = source.count("\n", 0, start) + 1
        text = source[:start] + replacement + source[end:]
        found.append(Mutant(file, operator, number, statement, seen[operator, statement], text))
    return found


def prepare() -> Path:
    """A work folder of this process with the sources and their precompiled common header."""
    work = WORK / str(os.getpid())
    shutil.rmtree(work, ignore_errors=True)
    for folder in ("op_kernel", "host_model"):
        shutil.copytree(KERNELS / folder, work / folder)
    (work / "tiling").symlink_to(KERNELS / "tiling")
    for folder in ("headers", "precompiled"):
        (work / folder).mkdir()
    for path in TESTS.glob("*.h"):
        shutil.copy(path, work / "headers")
    for path in TESTS.glob("drive_*.cpp"):
        shutil.copy(path, work)
    compiled = work / "precompiled" / "driver.h.gch"
    command = ["g++", *FLAGS, *includes(work, False), "-x", "c++-header", "headers/driver.h", "-o", str(compiled)]
    subprocess.run(command, cwd=work, check=True)
    return work


def includes(work: Path, precompiled: bool) -> list[str]:
    folders = [work / "headers", work, work / "host_model", work / "op_kernel"]
    return [f"-I{folder}" for folder in ([work / "precompiled"] if precompiled else []) + folders]


BUDGET: dict[str, int] = {}
"""Seconds of processor that the tests of a driver may take; set once the unchanged sources were judged."""


def run_tests(driver: str, library: Path, selection: str) -> int:
    """Exit status of the tests in a forked child, which keeps the imports: 0 means that they pass."""
    seconds = BUDGET.get(driver, SECONDS)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        os.environ["MINDMOE_KERNEL_LIBRARY"] = str(library)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        plugins = ["-p", "no:cacheprovider", "-p", "no:faulthandler"]
        options = ["-x", "-q", "--no-header", *plugins, "-k", selection]
        os._exit(int(pytest.main([*options, str(tests_of(driver))])))
    return os.waitpid(child, 0)[1]


def tests_of(driver: str) -> Path:
    return TESTS / ("test_host_model.py" if driver == "model" else f"test_{driver}.py")


def judge_driver(driver: str, selection: str, work: Path, precompiled: bool = True) -> Verdict:
    """What the selected tests say to a driver compiled from the sources in `work`."""
    library = work / f"{driver}.so"
    command = ["g++", *FLAGS, "-shared", *includes(work, precompiled), f"drive_{driver}.cpp", "-o", str(library)]
    if subprocess.run(command, cwd=work, capture_output=True).returncode:
        return "invalid"
    return "killed" if run_tests(driver, library, selection) else "survived"


def drivers_of(file: str) -> list[tuple[str, str]]:
    """The drivers to ask about a header, in turn, with the expression that selects their tests."""
    return [drivers[file] for drivers in (TARGETS, SECOND) if file in drivers]


@functools.cache
def surroundings(file: str) -> tuple[str, str]:
    """Digests of what a verdict on a header depends on beside its text: sources and flags; the tests."""
    headers = [f"-I{folder}" for folder in (KERNELS, KERNELS / "host_model", KERNELS / "op_kernel", TESTS)]
    code, tests = hashlib.sha256(), hashlib.sha256()
    for driver, selection in drivers_of(file):
        command = ["g++", "-std=c++17", "-MM", *headers, str(TESTS / f"drive_{driver}.cpp")]
        rule = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        sources = {Path(name).resolve() for name in rule.replace("\\\n", " ").split()[1:]} - {KERNELS / path_of(file)}
        code.update(f"{FLAGS} {selection}".encode())
        for path in sorted(sources):
            code.update(path.read_bytes())
        for path in (tests_of(driver), TESTS / "host_model.py", TESTS / "conftest.py"):
            tests.update(path.read_bytes())
    return code.hexdigest(), tests.hexdigest()


def digest_of(mutant: Mutant, verdict: Verdict) -> str:
    """What a verdict holds for: the sources, and for a survivor the tests as well."""
    code, tests = surroundings(mutant.file)
    parts = [code, mutant.text, tests if verdict == "survived" else ""]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@functools.cache
def work_folder() -> Path:
    """The work folder of this process of the pool."""
    return prepare()


def judge(mutant: Mutant) -> tuple[Mutant, Verdict]:
    """The verdict on one mutant."""
    work, path = work_folder(), path_of(mutant.file)
    original = (work / path).read_text()
    (work / path).write_text(mutant.text)
    try:
        for driver, selection in drivers_of(mutant.file):
            verdict = judge_driver(driver, selection, work, path.parts[0] == "op_kernel")
            if verdict != "survived":
                break
        return mutant, verdict
    finally:
        (work / path).write_text(original)


def sweep(chosen: list[Mutant], jobs: int) -> dict[str, Verdict]:
    """Verdicts by key; those that are known are not repeated, new ones are written down as they come."""
    VERDICTS.parent.mkdir(parents=True, exist_ok=True)
    VERDICTS.touch()
    known = set(VERDICTS.read_text().splitlines())
    verdicts: dict[str, Verdict] = {
        m.key: v for m in chosen for v in get_args(Verdict) if f"{digest_of(m, v)} {v}" in known
    }
    left, start = [m for m in chosen if m.key not in verdicts], time.monotonic()
    print(f"{len(chosen)} mutants, {len(verdicts)} with a verdict from before", flush=True)
    shutil.rmtree(WORK, ignore_errors=True)
    with multiprocessing.get_context("fork").Pool(jobs) as pool, VERDICTS.open("a") as file:
        for number, (mutant, verdict) in enumerate(pool.imap_unordered(judge, left), 1):
            verdicts[mutant.key] = verdict
            print(digest_of(mutant, verdict), verdict, file=file, flush=True)
            if verdict == "survived":
                print(f"survived {mutant.file}:{mutant.line} {mutant.key}", flush=True)
            if number % 50 == 0:
                print(f"{number}/{len(left)}, {time.monotonic() - start:.0f} s", flush=True)
    return verdicts


def report(chosen: list[Mutant], verdicts: dict[str, Verdict], files: list[str], whole: bool) -> int:
    """Prints the counts of each file and what is wrong with the list of survivors; the exit status."""
    explained: dict[str, str] = json.loads(SURVIVORS.read_text())
    for file in files:
        count = Counter(verdicts[m.key] for m in chosen if m.file == file)
        print(f"{file}: {count['killed']} killed, {count['survived']} survived, {count['invalid']} do not compile")
    survived = {key for key, verdict in verdicts.items() if verdict == "survived"}
    unexplained = sorted(survived - explained.keys())
    listed = {key for key in explained if key in verdicts or (whole and key.split(":")[0] in files)}
    stale = sorted(listed - survived)
    for key in unexplained:
        print(f"UNEXPLAINED {key}")
    for key in stale:
        print(f"listed in {SURVIVORS.name} but no survivor: {key}")
    total = Counter(verdicts.values())
    print(
        f"{len(chosen)} mutants: {total['killed']} killed, {total['survived']} survived ({len(unexplained)} "
        f"unexplained), {total['invalid']} do not compile"
    )
    return int(bool(unexplained or stale))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--only", nargs="+", metavar="FILE", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--match", default="", metavar="REGEX", help="mutants whose key matches")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    options = parser.parse_args()
    chosen = [m for file in options.only for m in mutants(file) if re.search(options.match, m.key)]
    chosen.sort(key=lambda m: not m.operator.startswith(("drop", "skip")))  # what matters most comes first
    if options.list:
        print("\n".join(m.key for m in chosen), f"\n{len(chosen)} mutants")
        return 0
    work = prepare()
    for driver in sorted({driver for file in options.only for driver, _ in drivers_of(file)}):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        assert judge_driver(driver, "", work) == "survived", f"the {driver} tests fail on the unchanged sources"
        took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        BUDGET[driver] = PATIENCE * max(20, round(took))
    return report(chosen, sweep(chosen, options.jobs), options.only, not options.match)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
