"""Writes the table of docs/equivalence.md from what `make equiv` left: equiv_table.py RUNS PAGE."""

import json
import re
import sys
from pathlib import Path


def main() -> None:
    """Puts all layouts, by number of ranks, between the markers of the page."""
    runs, page = Path(sys.argv[1]), Path(sys.argv[2])
    rows = ["| layout | ranks | loss | gradient | weight | element | equal |", "|---|---:|---:|---:|---:|---:|---|"]
    steps = set()
    for file in sorted(runs.glob("*/equiv.json"), key=lambda file: int(file.parent.name)):
        found = json.loads(file.read_text(encoding="utf-8"))
        steps.add(found["steps"])
        for row in found["layouts"]:
            figures = " | ".join(f"{row[key]:.1e}" for key in ("loss", "gradient", "weight", "element"))
            rows.append(f"| `{row['layout']}` | {row['ranks']} | {figures} | {'yes' if row['equal'] else 'NO'} |")
    assert len(steps) == 1, f"runs of {sorted(steps)} steps do not belong in one table"
    block = f"<!-- layouts -->\n\n{len(rows) - 2} layouts, {steps.pop()} steps each.\n\n" + "\n".join(rows)
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
