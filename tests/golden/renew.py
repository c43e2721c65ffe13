"""Writes golden traces anew: `python tests/golden/renew.py NAME ...`, or `all`.

A trace that changes is a decision: renew it in a commit of its own that says why its numbers are others.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import runs
import traces

DRAWS = (1, 2)  # of noise


def renew(names: list[str]) -> None:
    """Runs the runs of these names, without and with noise, and writes their traces."""
    for cards in sorted({runs.RUNS[name][0] for name in names}):
        chosen = [name for name in names if runs.RUNS[name][0] == cards]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            jobs = []
            for name in chosen:
                noise = traces.NOISE["bf16" if "train.precision=bf16" in runs.RUNS[name][1] else "fp32"]
                jobs += [{"name": name, "run": name}]
                jobs += [{"name": f"{name}-{draw}", "run": name, "noise": noise, "draw": draw} for draw in DRAWS]
            process = runs.start(jobs, cards, folder)
            try:
                runs.finish(process, folder)
            finally:
                runs.end(process)
            for name in chosen:
                plain, *noisy = (traces.assemble(folder, one, cards) for one in (name, *(f"{name}-{n}" for n in DRAWS)))
                bounds = traces.measured_bounds(plain, noisy)
                traces.write(replace(plain, bounds=bounds), runs.HERE / "traces" / f"{name}.json")
                print(f"wrote {name}", flush=True)


if __name__ == "__main__":
    words = list(runs.RUNS) if sys.argv[1:] == ["all"] else sys.argv[1:]
    if not words or (unknown := [word for word in words if word not in runs.RUNS]):
        raise SystemExit(f"usage: renew.py all | NAME ...; names: {', '.join(runs.RUNS)}")
    renew(words)
