"""Writes the table of docs/equivalence.md from what `make equiv` left: equiv_table.py RUNS PAGE."""

import json
import re
import sys
from pathlib import Path


def main() -> None:
    """Puts all layouts, by number of ranks, between the markers of the page."""
    runs, page = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [
        "| layout | ranks | steps | loss | gradient | weight | element | ties | equal |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    runs_of = set()
    for file in sorted(runs.glob("*/equiv.json"), key=lambda file: int(file.parent.name)):
        found = json.loads(file.read_text(encoding="utf-8"))
        runs_of.add((found["steps"], found["precision"], found["ops"]))
        for row in found["layouts"]:
            known = (row[key] for key in ("loss", "gradient", "weight", "element"))
            figures = " | ".join("-" if figure is None else f"{figure:.1e}" for figure in known)
            told = f"| `{row['layout']}` | {row['ranks']} | {row['steps']} | {figures} | {row['ties']} |"
            rows.append(f"{told} {'yes' if row['equal'] else 'NO'} |")
    assert len(runs_of) == 1, f"runs of {sorted(runs_of)} do not belong in one table"
    steps, precision, ops = runs_of.pop()
    block = f"<!-- layouts -->\n\n{len(rows) - 2} layouts, {steps} steps each, {precision}, ops: {ops}.\n\n"
    block += "\n".join(rows)
    text, count = re.subn(
        r"<!-- layouts -->.*?<!-- end -->",
        lambda _: block + "\n\n<!-- end -->",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    assert count == 1, f"{page} has {count} places for the table"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
