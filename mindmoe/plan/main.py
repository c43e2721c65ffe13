"""`mindmoe plan`: from a run's config to the layouts worth running on a cluster that need not exist yet."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mindmoe.config.run import RunConfig, resolve
from mindmoe.host.errors import ConfigError, UserError
from mindmoe.host.files import shown
from mindmoe.plan.anchors import compare_rows, error_summary
from mindmoe.plan.auto import layout_sections, planner_layout, workload_of
from mindmoe.plan.budget import budget
from mindmoe.plan.hardware import Hardware, load_hardware
from mindmoe.plan.layout import Layout
from mindmoe.plan.report import pareto_picture, write_report
from mindmoe.plan.search import search
from mindmoe.plan.step import CostModel, Estimate
from mindmoe.plan.tables import (
    GIB,
    TableData,
    anchor_table,
    best_table,
    budget_table,
    memory_table,
    rejected_table,
    time_table,
    workload_text,
)

MEDIAN_TARGET, WORST_TARGET = 0.15, 0.35
_SHOWN = 10
_PLAIN_WIDTH = 200  # columns where there is no terminal to fit into


def plan(
    config: RunConfig | None,
    cards: int,
    hardware: str,
    explain: bool,
    out: Path | None,
    check: Path | None,
    words: Sequence[str] = (),
) -> int:
    """Plans a run, or checks the planner against published runs.

    Args:
        config: the run; may be absent when only checking.
        cards: number of accelerators.
        hardware: a name on file, or the path of a YAML file that describes an accelerator.
        explain: print every term of the best layout's memory and time.
        out: where the best layout goes as a YAML config fragment; the HTML report goes beside it.
        check: a CSV file of published runs to compare with.
        words: the config's file and its overrides as the user gave them, for the command to go on with.

    Returns:
        Exit code: 1 if a check misses its targets (median error 15%, worst 35%) or cannot predict a row, else 0.

    Raises:
        UserError: nothing to do, or no layout is legal and fits.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH, highlight=False)
    code = 0
    if check:
        comparisons, refused = compare_rows(check)
        if comparisons:
            _show(console, anchor_table(comparisons))
            typical, worst = error_summary(comparisons)
            code = int(typical > MEDIAN_TARGET or worst > WORST_TARGET)
        for line in refused:
            _say(console, f"not predicted: {line}")
        code = max(code, int(bool(refused)))
    if config:
        _plan_run(console, config, cards, load_hardware(hardware), explain, out, words)
    elif not check:
        raise UserError("there is nothing to plan", "give a config, or --check with a CSV file of published runs")
    return code


def _plan_run(
    console: Console,
    config: RunConfig,
    cards: int,
    hardware: Hardware,
    explain: bool,
    out: Path | None,
    words: Sequence[str],
) -> None:
    if cards < 1:
        raise UserError(f"cards={cards} must be at least 1", "raise --cards")
    workload = workload_of(config)
    hardware = hardware.shared_by(cards)
    model = CostModel(hardware, workload)
    result = search(config, model, cards)
    best = result.best[0]
    fragment = config_fragment(config, model, best.layout, f"{config.name} on {cards} {hardware.name}")
    _say(console, fragment)
    if words:
        _say(console, f"Write these keys into {shown(words[0], 300)}, or go on with them as they stand:")
        _say(console, f"  {next_command(config, model, best.layout, words)}\n")
    own, note = own_estimate(config, model, cards)
    tables = [best_table(result.best[:_SHOWN], own), rejected_table(result), memory_table(model, best)]
    if explain:
        tables.append(time_table(model, best))
    tables.append(
        budget_table(
            budget(
                workload.architecture,
                hardware,
                cards=cards,
                seq_length=workload.seq_length,
                tokens=float(config.train.steps) * workload.tokens,
                tokens_per_s=best.tokens_per_s,
            )
        )
    )
    notes = [workload_text(workload), *hardware_notes(hardware), *([note] if note else [])]
    for line in notes:
        _say(console, line)
    for table in tables:
        _show(console, table)
    if out:
        fragment_path, report_path = out.with_suffix(".yaml"), out.with_suffix(".html")
        fragment_path.parent.mkdir(parents=True, exist_ok=True)
        fragment_path.write_text(fragment, encoding="utf-8")
        if not explain:
            tables.insert(3, time_table(model, best))
        write_report(
            report_path,
            f"Plan of {config.name} on {cards} {hardware.name}",
            notes,
            [*tables, sources_table(hardware)],
            pareto_picture(result, hardware.memory_gib),
            fragment,
        )
        _say(console, f"wrote {shown(str(fragment_path), 300)} and {shown(str(report_path), 300)}")


def own_estimate(config: RunConfig, model: CostModel, cards: int) -> tuple[Estimate | None, str]:
    """The estimate of the config's own layout, None where it has none for these cards, and what to know of it."""
    if config.parallel.planned:
        return None, ""
    try:
        run = resolve(config, cards)
    except ConfigError as error:
        return None, f"the config's own layout is none of {cards} cards: {error.problems[0]}"
    own, limit = model.estimate(planner_layout(run, cards)), model.hardware.memory_gib
    if own.memory.total > limit * GIB:
        return own, f"the config's own layout needs {own.memory.total / GIB:.1f} GiB of the {limit:.1f} GiB there are"
    return own, ""


def next_command(config: RunConfig, model: CostModel, layout: Layout, words: Sequence[str]) -> str:
    """The command that trains the run under a layout; JSON is YAML on one line."""
    sections = layout_sections(config, model, layout)
    settings = [f"parallel={json.dumps(sections['parallel'])}"]
    settings += [f"train.{key}={value}" for key, value in sections["train"].items()]
    node = model.hardware.cards_per_node
    nodes = ["--nodes", "hosts.txt", "--cards-per-node", str(node)] if layout.cards > node else []
    return shlex.join(["mindmoe", "launch", words[0], "--cards", str(layout.cards), *nodes, *words[1:], *settings])


def hardware_notes(hardware: Hardware) -> list[str]:
    """What a reader must know of the figures."""
    notes = [
        f"{hardware.name}: {hardware.peak_tflops['bf16']:.4g} TFLOP/s bf16, {hardware.memory_gib:.1f} GiB, "
        f"{hardware.hbm_tb_s:.3g} TB/s a card; figures marked [V] read in a file, [S] secondary, [M] from memory, "
        "[D] derived."
    ]
    if hardware.host is not None:
        notes.append(
            f"{hardware.host.ranks} ranks share the {hardware.host.cores} cores of this machine; times are of steps "
            "run op by op with the C++ pack."
        )
    if hardware.name.startswith("ascend"):
        notes.append(
            "Nothing was run on Ascend: its figures come from files and publications, and its efficiency "
            "constants rest on one published run. Measure before you commit a budget."
        )
    return notes


def sources_table(hardware: Hardware) -> TableData:
    """Where each figure of an accelerator comes from."""
    rows: list[tuple[str, ...]] = list(hardware.sources.items())
    return TableData("Sources of the hardware figures", ("figure", "source"), rows)


def config_fragment(config: RunConfig, model: CostModel, layout: Layout, title: str) -> str:
    """A layout as YAML that a run's config takes as it is."""
    sections = layout_sections(config, model, layout)
    return f"# Layout planned for {title}\n" + yaml.safe_dump(sections, sort_keys=False, default_flow_style=None)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _show(console: Console, data: TableData) -> None:
    table = Table(title=Text(data.title), title_justify="left", title_style="bold")
    for column in data.columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in data.rows:
        table.add_row(*map(Text, row))
    console.print(table)
