"""The planner's answers as tables: one form, shown on a terminal, in the HTML report and in the documentation."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from mindmoe.plan.anchors import Comparison, error_summary
from mindmoe.plan.budget import Budget
from mindmoe.plan.layout import Layout
from mindmoe.plan.memory import Memory
from mindmoe.plan.routing import PERCENTILES
from mindmoe.plan.search import SearchResult
from mindmoe.plan.step import CostModel, Estimate, Workload

GIB = 2.0**30
TIE = 0.10  # the planner's own median error is of this size

_MEMORY_MEANING = {
    "weights": "fp32 weights; under ZeRO 3 divided by the replicas",
    "gradients": "their fp32 sum, from ZeRO 2 divided; and a micro-batch's where they outgrow the activations",
    "optimizer": "two Adam moments, 8 bytes a parameter, and masters under ZeRO 1 and 2; from ZeRO 1 divided",
    "activations": "kept for the backward pass: micro-batches in flight x layers x bytes of the recompute policy",
    "working": "the largest layer's tensors while it runs, or the loss; gathered weights under ZeRO 3",
    "buffers": "dispatch, communicators; on a CPU scratch memory, buckets, and what the allocator keeps of building",
    "fragmentation": "a share of activations, working set and dispatch buffers",
    "reserved": "driver, runtime and kernels; on a CPU the process without a model",
}


@dataclass(frozen=True, slots=True)
class TableData:
    """A table of text; columns whose name starts with `>` are right-aligned."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    @property
    def headers(self) -> list[str]:
        """Column names without the mark of alignment."""
        return [column.removeprefix(">") for column in self.columns]

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        rule = ["--:" if column.startswith(">") else "---" for column in self.columns]
        lines = [self.headers, rule, *self.rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def schedule_text(layout: Layout) -> str:
    """The schedule with its chunks; nothing without a pipeline."""
    if layout.pp == 1:
        return "-"
    return f"{layout.schedule} x{layout.chunks}" if layout.chunks > 1 else layout.schedule


def best_table(estimates: Sequence[Estimate], own: Estimate | None = None) -> TableData:
    """Layouts side by side, those within TIE of the first marked; the config's own layout comes last."""
    columns = (
        "#",
        "layout",
        ">micro-batch",
        ">zero",
        "recompute",
        "schedule",
        "dispatcher",
        ">memory GiB",
        ">step s",
        ">tokens/s",
        ">tokens/s/card",
        ">MFU",
        "limited by",
    )
    rows: list[tuple[str, ...]] = []
    for number, estimate in enumerate([*estimates, *([own] if own else [])], start=1):
        layout = estimate.layout
        tie = number > 1 and estimate.step_s < (1.0 + TIE) * estimates[0].step_s
        rows.append(
            (
                ("config" if number > len(estimates) else str(number)) + (" =" if tie else ""),
                layout.describe(),
                str(layout.micro_batch_size),
                str(layout.zero),
                layout.recompute,
                schedule_text(layout),
                layout.dispatcher if layout.ep > 1 else "-",
                f"{estimate.memory.total / GIB:.1f}",
                f"{estimate.step_s:.2f}",
                f"{estimate.tokens_per_s:,.0f}",
                f"{estimate.tokens_per_s / layout.cards:,.0f}",
                f"{100 * estimate.mfu:.1f}%",
                estimate.limiter,
            )
        )
    title = "Fastest layouts, one for each choice of tp, pp, ep and etp; = is a tie with the first, less than 10% apart"
    return TableData(title, columns, rows)


def rejected_table(result: SearchResult) -> TableData:
    """Why layouts are out."""
    rows: list[tuple[str, ...]] = [(f"{count:,}", reason) for reason, count in result.rejected.most_common() if count]
    rows.append((f"{len(result.points):,}", "legal and fits"))
    return TableData(f"{result.considered:,} layouts considered", (">layouts", "verdict"), rows)


def memory_table(model: CostModel, estimate: Estimate) -> TableData:
    """Memory of the fullest rank by term, at every percentile of the routing imbalance."""
    layout = estimate.layout
    memories: list[Memory] = [model.memories(layout, percentile)[estimate.memory_stage] for percentile in PERCENTILES]
    rows: list[tuple[str, ...]] = [
        (field.name, *(f"{getattr(memory, field.name) / GIB:.2f}" for memory in memories), _MEMORY_MEANING[field.name])
        for field in fields(Memory)
    ]
    rows.append(
        (
            "total",
            *(f"{memory.total / GIB:.2f}" for memory in memories),
            f"of {model.hardware.memory_gib:.1f} GiB; p99 must fit",
        )
    )
    factors = [f"{model.workload.imbalance(layout.ep, percentile):.2f}" for percentile in PERCENTILES]
    rows.insert(0, ("routing imbalance", *factors, "rows of the busiest expert rank over the mean"))
    return TableData(
        f"Memory of a rank of stage {estimate.memory_stage} [GiB]",
        ("term", *(f">{percentile}" for percentile in PERCENTILES), "meaning"),
        rows,
    )


def time_table(model: CostModel, estimate: Estimate) -> TableData:
    """Every term of the slowest stage for one micro-batch, then the step."""
    layout, workload = estimate.layout, estimate.workload
    count = layout.microbatches(workload.global_batch_size)
    stage = model.slowest_stage(layout)
    rows: list[tuple[str, ...]] = []
    for layers, term in model.stage_terms(layout, stage):
        redone = term.repeated(layout.recompute)
        seconds = layers * (term.forward + term.backward + term.weight + redone)
        times = (term.forward, term.backward, term.weight, redone)
        rows.append(
            (
                term.category,
                term.name,
                str(layers),
                *(f"{1e3 * part:.3f}" for part in times),
                f"{count * seconds:.3f}",
                term.detail,
            )
        )
    meanings = {
        "pp comm": "exposed sends between stages",
        "bubble": "idle time of the simulated schedule",
        "dp comm": "exposed gradient and weight collectives",
        "optimizer": "34 bytes a local parameter" if model.hardware.host is None else "AdamW, and sums of gradients",
    }
    for name, meaning in meanings.items():
        rows.append((name, "", "", "", "", "", "", f"{estimate.parts[name]:.3f}", meaning))
    rows.append(
        (
            "step",
            "",
            "",
            "",
            "",
            "",
            "",
            f"{estimate.step_s:.3f}",
            f"{workload.tokens:,} tokens, {workload.flops:.3e} FLOP, MFU {100 * estimate.mfu:.1f}% of "
            f"{layout.cards} x {model.hardware.peak_tflops['bf16']:.1f} TFLOP/s",
        )
    )
    return TableData(
        f"Time of stage {stage} (the slowest), {count} micro-batches a step",
        (
            "category",
            "term",
            ">layers",
            ">forward ms",
            ">backward ms",
            ">weight ms",
            ">recompute ms",
            ">step s",
            "detail",
        ),
        rows,
    )


def budget_table(cost: Budget) -> TableData:
    """A run's cost."""
    rows: list[tuple[str, ...]] = [
        ("tokens", f"{cost.tokens:.3e}"),
        ("model FLOPs (active matrices and attention)", f"{cost.flops:.3e}"),
        ("6 x active parameters x tokens", f"{cost.flops_active:.3e}"),
        ("6 x all parameters x tokens (not what an MoE computes)", f"{cost.flops_total:.3e}"),
        ("days at the planned speed", f"{cost.days:.1f}"),
        ("days with faults", f"{cost.days_real:.1f}"),
        ("energy", f"{cost.energy_mwh:,.0f} MWh"),
        ("checkpoint", f"{cost.checkpoint_bytes / 1e12:.2f} TB, written in {cost.checkpoint_s:.0f} s"),
        ("mean time between faults", f"{cost.mtbf_s / 3600:.0f} h"),
        (
            "effective training time, saving in the background",
            f"{100 * cost.effective_async:.1f}% with a checkpoint every {cost.interval_s / 60:.0f} min",
        ),
        ("effective training time, saving in the way", f"{100 * cost.effective_sync:.1f}%"),
    ]
    return TableData("Budget", ("quantity", ">value"), rows)


def anchor_table(comparisons: Sequence[Comparison]) -> TableData:
    """Predicted against measured step times."""
    rows: list[tuple[str, ...]] = []
    for comparison in comparisons:
        anchor, estimate = comparison.anchor, comparison.estimate
        layout = estimate.layout
        rows.append(
            (
                anchor.name,
                anchor.workload.architecture.name,
                f"{layout.cards} {anchor.hardware.name}",
                layout.describe() + (f" x{layout.chunks}" if layout.chunks > 1 else ""),
                layout.recompute,
                f"{anchor.measured_s:.2f}",
                f"{estimate.step_s:.2f}",
                f"{100 * comparison.error:+.1f}%",
                f"{100 * estimate.mfu:.1f}%",
                f"{estimate.memory.total / GIB:.0f}",
                estimate.limiter,
            )
        )
    typical, worst = error_summary(comparisons)
    return TableData(
        f"Step time, predicted against published: median error {100 * typical:.1f}%, worst {100 * worst:.1f}%",
        (
            "row",
            "model",
            "cards",
            "layout",
            "recompute",
            ">published s",
            ">predicted s",
            ">error",
            ">predicted MFU",
            ">memory GiB",
            "limited by",
        ),
        rows,
    )


def workload_text(workload: Workload) -> str:
    """The workload on one line."""
    architecture = workload.architecture
    return (
        f"{architecture.name}: {architecture.total_params / 1e9:.2f}B parameters, "
        f"{architecture.active_params / 1e9:.2f}B active, "
        f"{architecture.flops_per_token(workload.seq_length) / 1e9:.2f} GFLOP a token; "
        f"{workload.global_batch_size} sequences of {workload.seq_length} tokens a step"
    )
