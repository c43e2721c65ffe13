"""Writes the tables and the plot of docs/performance.md from the figures that the benchmarks left.

report.py [--figures docs/performance/figures.json] [--page docs/performance.md]

Each table stands between `<!-- figures: NAME -->` and `<!-- end -->`; everything else on the page is left alone.
"""

import argparse
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def about(machine: Figures) -> str:
    """One line about where and when figures were taken."""
    peaks, versions = machine["peak_flops"], machine["versions"]
    return (
        f"{machine['processor']}, {machine['threads']} cores, load average {machine['load']:.1f}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + f"; peak of the products {peaks['fp32'] / 1e9:.0f} (fp32) and {peaks['bf16'] / 1e9:.0f} GFLOP/s (bf16)."
    )


def train(figures: Figures) -> str:
    """A table for each size."""
    parts = []
    for size, part in figures["train"].items():
        peaks = part["machine"]["peak_flops"]
        rows = [
            [
                row["name"],
                f"{row['tokens_per_s']:,.0f}",
                f"{row['slower_than_ours']:.2f}",
                f"{row['median_s']:.3f}",
                f"{row['min_s']:.3f} .. {row['max_s']:.3f}",
                f"{row['peak_bytes'] / 2**30:.2f}",
                f"{row['first_step_s']:.1f}",
                f"{100 * row['flops_per_s'] / peaks['fp32' if 'fp32' in row['name'] else 'bf16']:.0f} %",
            ]
            for row in part["rows"]
            if "ended" not in row
        ]
        rows += [[row["name"], "ended", *["-"] * 6] for row in part["rows"] if "ended" in row]
        header = [
            f"`{size}`",
            "tokens/s",
            "times ours",
            "median s",
            "min .. max s",
            "peak GiB",
            "first step s",
            "of peak",
        ]
        parts.append(table(header, rows) + "\n\n" + about(part["machine"]))
    return "\n\n".join(parts)


def generation(figures: Figures) -> str:
    """Prefill and decoding."""
    parts = []
    for size, part in figures["generate"].items():
        rows = [
            [
                f"{row['name']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}",
                f"{row['prefill_s']:.3f}",
                f"{row['decode_tokens_per_s']:.0f}",
                f"{row['decode_min']:.0f} .. {row['decode_max']:.0f}",
                f"{row['same_tokens_as_hf_fp32']}/{part['new']}",
            ]
            for row in part["rows"]
        ]
        header = [
            f"`{size}`, prompt {part['prompt']}",
            "prefill s",
            "decode tokens/s",
            "min .. max",
            "tokens as HF fp32",
        ]
        parts.append(table(header, rows) + "\n\n" + about(part["machine"]))
    return "\n\n".join(parts)


def scaling(figures: Figures) -> str:
    """All curves in one table."""
    rows = []
    for curve, part in figures["scaling"].items():
        first = part["rows"][0]
        for row in part["rows"]:
            rows.append(
                [
                    f"{curve}: {row['name']}",
                    f"{row['median_s']:.3f}",
                    f"{row['tokens_per_s']:,.0f}",
                    f"{row['median_s'] / first['median_s']:.2f}",
                ]
            )
    return table(["", "median s", "tokens/s", "step against the first"], rows)


def layouts(figures: Figures) -> str:
    """Step time and memory of layouts."""
    part = figures["layouts"]["tiny"]
    rows = [
        [
            f"`{row['name']}`",
            str(row["ranks"]),
            f"{row['median_s']:.3f}",
            f"{row['min_s']:.3f} .. {row['max_s']:.3f}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['peak_bytes'] / 2**30:.2f}",
        ]
        for row in part["rows"]
    ]
    header = ["layout", "ranks", "median s", "min .. max s", "tokens/s", "peak GiB of a rank"]
    return table(header, rows) + "\n\n" + about(part["machine"])


def startup(figures: Figures) -> str:
    """Time to the first step."""
    part = figures["startup"]["layers"]
    rows = [[str(row["layers"]), f"{row['first_step_s']:.1f}", f"{row['process_s']:.1f}"] for row in part["rows"]]
    return table(["layers", "first step s", "from the start of the process s"], rows) + "\n\n" + about(part["machine"])


def agreement(figures: Figures) -> str:
    """Ends of training by ops and seed."""
    part = figures["agreement"]["markov"]
    rows = [
        [f"{row['kernels']}, {row['precision']}, seed {row['seed']}", f"{row['losses'][0]:.4f}", f"{row['last']:.4f}"]
        for row in part["rows"]
    ]
    pack = [row["last"] for row in part["rows"] if (row["kernels"], row["precision"]) == ("cpu", "fp32")]
    ends = {(row["kernels"], row["precision"], row["seed"]): row["last"] for row in part["rows"]}
    lines = [
        f"Spread of {len(pack)} seeds with the pack in fp32: {max(pack) - min(pack):.4f} "
        f"(standard deviation {statistics.stdev(pack):.4f})."
    ]
    for kernels, precision in (("reference", "fp32"), ("cpu", "bf16")):
        gaps = [
            abs(end - ends["cpu", "fp32", seed]) for (k, p, seed), end in ends.items() if (k, p) == (kernels, precision)
        ]
        lines.append(f"Largest difference from it at equal seed, {kernels} {precision}: {max(gaps):.4f}.")
    header = ["ops, precision", "first loss", f"mean loss of the last 20 of {part['steps']} steps"]
    return table(header, rows) + "\n\n" + " ".join(lines)


PARTS: dict[str, Callable[[Figures], str]] = {
    "train": train,
    "generate": generation,
    "scaling": scaling,
    "layouts": layouts,
    "startup": startup,
    "agreement": agreement,
}


def plot(figures: Figures, file: Path) -> None:
    """Step time of every contender at every size, with minimum and maximum, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mindmoe"
    from matplotlib import pyplot

    sizes = figures["train"]
    figure, axes = pyplot.subplots(1, len(sizes), figsize=(3.6 * len(sizes), 3.4), constrained_layout=True)
    for axis, (size, part) in zip(axes if len(sizes) > 1 else [axes], sizes.items(), strict=True):
        rows = [row for row in part["rows"][::-1] if "ended" not in row]
        medians = [row["median_s"] for row in rows]
        spread = [
            [row["median_s"] - row["min_s"] for row in rows],
            [row["max_s"] - row["median_s"] for row in rows],
        ]
        colours = ["#1f77b4" if row["name"].startswith("mindmoe") else "#999999" for row in rows]
        axis.barh([row["name"] for row in rows], medians, xerr=spread, color=colours, ecolor="#333333", capsize=2)
        axis.set_title(size)
        axis.set_xlabel("seconds a step")
        axis.tick_params(axis="y", labelsize=7, labelleft=axis is (axes[0] if len(sizes) > 1 else axes))
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Parses the command line and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--figures", type=Path, default=ROOT / "docs/performance/figures.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/performance.md")
    args = parser.parse_args()
    figures = json.loads(args.figures.read_text())
    page = args.page.read_text()
    for name, render in PARTS.items():
        if name in figures:
            block = f"<!-- figures: {name} -->\n\n{render(figures)}\n\n<!-- end -->"
            page, found = re.subn(
                rf"<!-- figures: {name} -->.*?<!-- end -->", lambda _, b=block: b, page, flags=re.DOTALL
            )
            assert found == 1, f"{args.page} has {found} places for {name}"
    args.page.write_text(page)
    if "train" in figures:
        plot(figures, args.figures.with_name("train.svg"))


if __name__ == "__main__":
    main()
