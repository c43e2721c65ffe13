"""Predicted against measured step time and peak memory of layouts of 1, 2 and 4 ranks on this machine.

    predicted.py --hardware machine.yaml [--layouts dp2 ...] [--rounds N] [--page docs/planner.md] [--only-predict]

`mindmoe doctor --measure` writes the hardware file; each row is one layout of layouts.py run op by op, the batch of
that script, and nothing is set per row. `--page` replaces the table between its marks.
"""

import argparse
import re
import statistics
from pathlib import Path

from layouts import base_config, run

from mindmoe.equiv.layouts import LayoutRun, parse_layout
from mindmoe.host.env import usable_cores
from mindmoe.plan.auto import planner_layout, workload_of
from mindmoe.plan.hardware import load_hardware
from mindmoe.plan.step import CostModel, Estimate

LAYOUTS = ["dp1", "full", "dp2", "dp2,zero1", "pp2", "tp2", "dp2,ep2", "dp4", "pp4", "dp2,pp2"]
GIB = 2.0**30
_BLOCK = re.compile(r"(<!-- machine:layouts -->\n).*?(<!-- /machine:layouts -->)", re.DOTALL)


def predict(layout: LayoutRun, hardware: str) -> Estimate:
    """The planner's estimate of a layout."""
    found = load_hardware(hardware).shared_by(layout.world)
    return CostModel(found, workload_of(layout.config)).estimate(planner_layout(layout.config, layout.world))


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hardware", default="this machine")
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--page", type=Path, help="whose table is replaced")
    parser.add_argument("--only-predict", action="store_true", help="run nothing")
    args = parser.parse_args()
    cores, base = usable_cores(), base_config()
    lines = [
        "| layout | ranks | predicted s | measured s | error | predicted GiB | measured GiB | error |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    errors: list[float] = []
    for text in args.layouts:
        layout = parse_layout(text, base)
        estimate = predict(layout, args.hardware)
        time_s, memory = estimate.step_s, estimate.memory.total / GIB
        row = f"| `{text}` | {layout.world} | {time_s:.2f} "
        if args.only_predict:
            parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in estimate.parts.items() if seconds > 0.005)
            print(f"{text:<12} {time_s:6.2f} s {memory:5.2f} GiB: {parts}")
            continue
        turns = [run(layout, args.steps, max(1, cores // layout.world)) for _ in range(args.rounds)]
        measured = statistics.median(second for turn in turns for second in turn["seconds"])
        peak = max(turn["peak_bytes"] for turn in turns) / GIB
        off = time_s / measured - 1, memory / peak - 1
        errors += map(abs, off)
        row += f"| {measured:.2f} | {off[0]:+.0%} | {memory:.2f} | {peak:.2f} | {off[1]:+.0%} |"
        print(row, flush=True)
        lines.append(row)
    if errors:
        print(f"largest error {max(errors):.0%}")
    if errors and args.page:
        table = "\n".join(lines) + "\n"
        text = args.page.read_text(encoding="utf-8")
        args.page.write_text(_BLOCK.sub(lambda match: match[1] + table + match[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
