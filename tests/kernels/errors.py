"""Largest errors of every kernel against its float64 oracle, over all cases of the tests: prints a Markdown table.

Exact results (ids, counts, placements) have none. Errors are absolute, beside the largest value of that case.

    python tests/kernels/errors.py
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest


def main() -> int:
    """Runs the oracle tests and prints what they recorded."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "errors.jsonl")
        os.environ["MINDMOE_KERNEL_ERRORS"] = str(file)
        status = pytest.main(
            ["-q", "-k", "oracle or sink or forward or backward or topk or combine", str(Path(__file__).parent)]
        )
        if status:
            return int(status)
        rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    print("| kernel | type | cases | largest error | of a largest value of | in a result of shape |")
    print("|---|---|---|---|---|---|")
    for kernel, bf16 in sorted({(row["kernel"], row["bf16"]) for row in rows}):
        cases = [row for row in rows if (row["kernel"], row["bf16"]) == (kernel, bf16)]
        worst = max(cases, key=lambda row: row["error"])
        shape = " x ".join(map(str, worst["shape"]))
        precision = "bf16" if bf16 else "fp32"
        print(f"| {kernel} | {precision} | {len(cases)} | {worst['error']:.1e} | {worst['largest']:.3g} | {shape} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
