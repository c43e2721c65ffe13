"""Writes the planner's own figures into its documentation: `python -m mindmoe.plan.document docs/planner.md`.

A page marks a generated block with `<!-- planner:NAME -->` and `<!-- /planner:NAME -->`; what stands between is
replaced. A test holds the committed page to what this module writes.
"""

import re
import sys
from pathlib import Path

from mindmoe.config.load import load_config
from mindmoe.config.run import RunConfig
from mindmoe.host.errors import UserError
from mindmoe.plan.anchors import compare, packaged_anchors
from mindmoe.plan.auto import workload_of
from mindmoe.plan.budget import Budget, budget
from mindmoe.plan.hardware import hardware_names, load_hardware
from mindmoe.plan.search import SearchResult, search
from mindmoe.plan.step import CostModel
from mindmoe.plan.tables import TableData, anchor_table, best_table, rejected_table

CARDS, TOKENS = 512, 2.5e12
PLAN_PFLOPS, PLAN_FLOPS, PLAN_DAYS = 163.8, 1.8e24, 122.0  # as the project plan states them
_BLOCK = re.compile(r"(<!-- planner:(\w+) -->\n).*?(<!-- /planner:\2 -->)", re.DOTALL)


def example_run() -> RunConfig:
    """The run that the documentation plans."""
    return load_config(Path(__file__).resolve().parents[2] / "configs" / "gpt-oss-120b.yaml")


def example_model() -> CostModel:
    """Its costs on Ascend 910B2."""
    return CostModel(load_hardware("ascend-910b2"), workload_of(example_run()))


def example_search() -> SearchResult:
    """The search that the documentation shows."""
    return search(example_run(), example_model(), CARDS)


def constants_table() -> TableData:
    """Peaks and efficiency constants of every accelerator on file."""
    rows: list[tuple[str, ...]] = []
    for name in hardware_names():
        hardware = load_hardware(name)
        own, link = hardware.efficiency, hardware.link
        rows.append(
            (
                name,
                f"{hardware.peak_tflops['bf16']:.1f}",
                f"{hardware.memory_gib:.0f}",
                f"{hardware.hbm_tb_s:.2f}",
                f"{link.topology} {link.link_gb_s:g}",
                f"{link.nic_gb_s:g}",
                f"{own.gemm:g}",
                f"{own.grouped_gemm:g}",
                f"{own.attention:g}",
                f"{own.hbm:g}",
                f"{own.launch_us:g}",
            )
        )
    return TableData(
        "",
        (
            "hardware",
            ">bf16 TFLOP/s",
            ">GiB",
            ">HBM TB/s",
            "node link GB/s",
            ">port GB/s",
            ">gemm",
            ">grouped gemm",
            ">attention",
            ">hbm",
            ">launch us",
        ),
        rows,
    )


def example_budget(result: SearchResult) -> Budget:
    """The project plan's tokens at the speed of the best layout."""
    model = example_model()
    return budget(
        model.workload.architecture,
        model.hardware,
        cards=CARDS,
        seq_length=model.workload.seq_length,
        tokens=TOKENS,
        tokens_per_s=result.best[0].tokens_per_s,
    )


def replay_table(result: SearchResult) -> TableData:
    """The project plan's numbers beside active-parameter arithmetic and the planner's answer."""
    cost, best = example_budget(result), result.best[0]
    peak = PLAN_PFLOPS * 1e15
    rate = PLAN_FLOPS / (PLAN_DAYS * 86400)
    rows: list[tuple[str, ...]] = [
        (
            "peak of a card",
            f"{peak / CARDS / 1e12:.1f} TFLOP/s",
            f"{PLAN_PFLOPS} PFLOP/s / {CARDS}; 910B bins have 294.9, 353.9 and 363.7",
        ),
        (
            "compute by all parameters",
            f"{cost.flops_total:.2e} FLOP",
            f"6 x 116.83e9 x {TOKENS:.1e}: this is the plan's {PLAN_FLOPS:.1e}",
        ),
        (
            f"speed that {PLAN_DAYS:.0f} days need",
            f"{rate / 1e15:.1f} PFLOP/s",
            f"{100 * rate / peak:.0f}% of the stated peak: no program reaches that",
        ),
        ("compute by active parameters", f"{cost.flops_active:.2e} FLOP", f"6 x 5.133e9 x {TOKENS:.1e}"),
        (
            "compute with attention",
            f"{cost.flops:.2e} FLOP",
            f"32.71 GFLOP a token at sequence 4,096: {cost.flops_total / cost.flops:.0f} times fewer than by all",
        ),
        ("days at 100% of the stated peak", f"{cost.flops / peak / 86400:.1f}", "a bound, not a plan"),
        (
            "days the planner expects",
            f"{cost.days:.1f}",
            f"{best.tokens_per_s:,.0f} tokens/s, {100 * best.mfu:.1f}% of 512 x 353.9 TFLOP/s",
        ),
        (
            "with faults and checkpoints",
            f"{cost.days_real:.1f}",
            f"a fault every {cost.mtbf_s / 3600:.0f} h, effective training time {100 * cost.effective_async:.1f}%",
        ),
        ("energy", f"{cost.energy_mwh:,.0f} MWh", "600 W a card with its host, cooling factor 1.3 (both assumed)"),
        (
            "checkpoint",
            f"{cost.checkpoint_bytes / 1e12:.2f} TB",
            f"written in {cost.checkpoint_s:.0f} s at 2 GB/s a node (assumed)",
        ),
    ]
    return TableData("", ("quantity", ">value", "how"), rows)


def blocks(result: SearchResult) -> dict[str, str]:
    """The generated blocks by name."""
    anchors, apart = (anchor_table(compare(packaged_anchors(name))) for name in ("anchors", "anchors_apart"))
    best, rejected = best_table(result.best[:10]), rejected_table(result)
    return {
        "anchors": f"{anchors.title}.\n\n{anchors.markdown()}\n",
        "apart": f"{apart.title}.\n\n{apart.markdown()}\n",
        "constants": f"{constants_table().markdown()}\n",
        "best": f"{best.markdown()}\n\n{rejected.title}:\n\n{rejected.markdown()}\n",
        "replay": f"{replay_table(result).markdown()}\n",
    }


def rewrite(text: str, generated: dict[str, str]) -> str:
    """The page with its marked blocks replaced.

    Raises:
        UserError: the page marks a block that does not exist, or lacks one.
    """
    named = [match[2] for match in _BLOCK.finditer(text)]
    if sorted(named) != sorted(generated):
        raise UserError(
            f"the page marks the blocks {sorted(named)} but there are {sorted(generated)}", "mark each block once"
        )
    return _BLOCK.sub(lambda match: match[1] + generated[match[2]] + match[3], text)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(rewrite(page.read_text(encoding="utf-8"), blocks(example_search())), encoding="utf-8")
