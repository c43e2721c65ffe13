"""`mindmoe dryrun`: one rank of any cluster built and run on this machine, and all ranks checked against each other."""

import json
from collections import Counter
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.table import Table

from mindmoe.config.run import RunConfig
from mindmoe.host.errors import UserError
from mindmoe.host.position import spans
from mindmoe.observe.environment import memory
from mindmoe.parallel.ledger import Call
from mindmoe.parallel.mesh import Mesh
from mindmoe.plan.auto import planned
from mindmoe.plan.calls.agree import agree
from mindmoe.plan.calls.program import StepProgram
from mindmoe.plan.memory import Memory
from mindmoe.plan.rank_memory import held_parameters, rank_memory
from mindmoe.proof.dryrun.execute import Executed, execute

GIB = 2.0**30
_WIDTH = 160  # columns where there is no terminal to fit into


def dryrun(config: RunConfig, world: int, rank: int | None, everybody: bool, out: Path | None) -> int:
    """Checks all ranks against each other, runs one of them, or both; returns 1 if something does not hold.

    Args:
        config: the run.
        world: ranks of the cluster.
        rank: which to build and run on this machine; None for none.
        everybody: whether to check that all ranks agree.
        out: where the rank's collectives go as JSON.

    Raises:
        UserError: the layout does not fit the ranks, or the step does not fit this machine.
    """
    if rank is None and not everybody:
        raise UserError("there is nothing to do", "name a rank with --rank, or check all ranks with --all")
    run = planned(config, world)
    mesh = Mesh.build(run.parallel, world)
    if rank is not None:
        mesh.coordinates(rank)  # refuses a rank that does not exist
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH, highlight=False)
    code = check_all(console, run, mesh) if everybody else 0
    if rank is not None:
        code = max(code, run_rank(console, run, mesh, rank, out))
    return code


def check_all(console: Console, run: RunConfig, mesh: Mesh) -> int:
    """Runs the lists of all ranks against each other; returns 1 if they do not agree."""
    started = perf_counter()
    programs = [StepProgram(run, mesh, rank).calls() for rank in range(mesh.world)]
    found = agree(programs, rendezvous=True)
    seconds = perf_counter() - started
    if found.problems:
        console.print(f"the {mesh.world} ranks do NOT agree ({seconds:.1f} s):", markup=False)
        for problem in found.problems:
            console.print(f"  {problem}", markup=False)
        return 1
    console.print(
        f"all {mesh.world} ranks agree: {found.calls:,} collectives and messages of a step have their partners in one "
        f"order with equal shapes, and every send may wait for its receive ({seconds:.1f} s)",
        markup=False,
    )
    return 0


def run_rank(console: Console, run: RunConfig, mesh: Mesh, rank: int, out: Path | None) -> int:
    """Builds a rank, runs one step, and reports; returns 1 if it called other collectives than derived."""
    program = StepProgram(run, mesh, rank)
    expected, parameters, derived = rank_memory(program), held_parameters(program), program.calls()
    at = mesh.places[rank]
    layers = ", ".join(f"{piece.layers.start}-{piece.layers.stop - 1}" for piece in program.pieces if piece.layers)
    console.print(
        f"rank {rank} of {mesh.world}: dp {at.dp} tp {at.tp} pp {at.pp} ep {at.ep} cp {at.cp} etp {at.etp}, "
        f"layers {layers or 'none'}; a step of {program.num_micro_batches} micro-batches of {program.tokens[0]} x "
        f"{program.tokens[1]} tokens",
        markup=False,
    )
    _refuse(expected, program)
    executed = execute(program.config, mesh.world, rank)
    _show_memory(console, expected, executed, parameters)
    _show_calls(console, executed.calls)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report(program, expected, executed), indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {out}", markup=False)
    problems = list(_problems(derived, parameters, executed))
    for problem in problems:
        console.print(f"NOT as derived: {problem}", markup=False)
    if not problems:
        console.print(
            f"ran one step with stand-ins in {executed.step_s:.1f} s (built in {executed.build_s:.1f} s); its "
            f"{len(executed.calls):,} collectives are the ones derived, which --all checks against the other ranks'",
            markup=False,
        )
    return 1 if problems else 0


def _refuse(expected: Memory, program: StepProgram) -> None:
    """Raises what to do where the step would not fit this machine."""
    free = memory("MemAvailable")
    if free is None or expected.total <= free:
        return
    parallel = program.config.parallel
    state = expected.total - expected.activations - expected.working - expected.reserved
    ways = ["train.seq_length=128", "a smaller train.global_batch_size"]
    if state > expected.total / 2 and program.mesh.dp * program.mesh.cp > 1 and parallel.zero != 3:
        ways.insert(0, "parallel.zero=3 parallel.recompute=full")
    elif state > expected.total / 2:
        ways.insert(0, "more stages (parallel.pp) or fewer model.num_hidden_layers")
    raise UserError(
        f"the step needs {expected.total / GIB:.1f} GiB on this machine ({_terms(expected)}) and "
        f"{free / GIB:.1f} GiB are free",
        f"try {', '.join(ways)}",
    )


def _terms(expected: Memory) -> str:
    parts = [(each.name, getattr(expected, each.name) / GIB) for each in fields(expected)]
    return ", ".join(f"{name} {size:.1f}" for name, size in parts if size >= 0.05)


def _problems(derived: list[Call], parameters: int, executed: Executed) -> list[str]:
    """What differs between the program that ran and the one that was derived."""
    found = []
    if executed.parameters != parameters:
        found.append(f"{executed.parameters:,} parameters were built, {parameters:,} were derived")
    for place, (made, listed) in enumerate(zip_longest(executed.calls, derived)):
        if made != listed:
            found.append(f"call {place + 1} was {made}, derived {listed}")
            break
    if not executed.finite:
        found.append("the loss or the gradient norm is not finite")
    return found


def _show_memory(console: Console, expected: Memory, executed: Executed, parameters: int) -> None:
    table = Table(title=f"{parameters:,} parameters on this rank", title_justify="left", title_style="bold")
    table.add_column("memory")
    for column in ("derived GiB", "measured GiB"):
        table.add_column(column, justify="right")
    for each in fields(expected):
        table.add_row(each.name, f"{getattr(expected, each.name) / GIB:.3f}", "")
    state = expected.weights + expected.optimizer
    table.add_row("weights and optimizer", f"{state / GIB:.3f}", f"{executed.state_bytes / GIB:.3f}")
    table.add_row("peak of the process", f"{expected.total / GIB:.3f}", f"{executed.peak / GIB:.3f}")
    console.print(table)


def _show_calls(console: Console, calls: list[Call]) -> None:
    """The collectives of a step by kind, group and shape, those that send most first."""
    table = Table(title="collectives of a step", title_justify="left", title_style="bold")
    for column in ("collective", "over", "ranks", "shape"):
        table.add_column(column, overflow="fold")
    for column in ("calls", "MiB sent"):
        table.add_column(column, justify="right")
    counts: Counter[Call] = Counter(calls)
    sent: Counter[Call] = Counter()
    for call in calls:
        sent[call] += call.sent  # type: ignore[assignment]
    for call, _ in sent.most_common():
        ends = f" {'to' if call.kind == 'send' else 'from'} {call.peer}" if call.peer >= 0 else ""
        shape = " x ".join("?" if size < 0 else str(size) for size in call.shape)
        table.add_row(
            call.kind + ends,
            f"{call.axis} ({len(call.ranks)})",
            spans(call.ranks),
            f"{shape} {call.dtype}",
            str(counts[call]),
            f"{sent[call] / 2**20:,.2f}",
        )
    console.print(table)


def report(program: StepProgram, expected: Memory, executed: Executed) -> dict[str, object]:
    """Everything about a rank as JSON: memory, times, and each collective in order."""
    return {
        "rank": program.rank,
        "world": program.mesh.world,
        "parameters": executed.parameters,
        "predicted": {each.name: getattr(expected, each.name) for each in fields(expected)} | {"total": expected.total},
        "measured": {"state_bytes": executed.state_bytes, "peak": executed.peak},
        "seconds": {"build": executed.build_s, "step": executed.step_s},
        "collectives": [
            {
                "kind": call.kind,
                "axis": call.axis,
                "ranks": spans(call.ranks),
                "shape": call.shape,
                "dtype": call.dtype,
                "peer": call.peer,
                "sent": call.sent,
            }
            for call in executed.calls
        ],
    }
