"""Predicted against measured peak memory of single ranks: python scripts/bench/rank_memory.py docs/cluster.md

Each rank runs one step with stand-ins in a process of its own, so the figures hold whatever else the machine does. The
page marks the table with `<!-- dryrun:memory -->` and `<!-- /dryrun:memory -->`.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "moe-10b-a1b.yaml"
COMMON = [
    "model.hidden_size=512",
    "model.num_hidden_layers=6",
    "model.num_attention_heads=8",
    "model.num_key_value_heads=4",
    "model.head_dim=64",
    "model.intermediate_size=512",
    "model.vocab_size=16384",
    "moe.num_experts=16",
    "train.device=cpu",
    "train.seq_length=512",
    "train.global_batch_size=8",
    "parallel.ep=1",
]
RANKS: list[tuple[int, int, list[str]]] = [
    (1, 0, ["train.micro_batch_size=4"]),
    (2, 1, ["parallel.ep=2", "train.micro_batch_size=2"]),
    (2, 0, ["parallel.zero=1", "train.micro_batch_size=2", "parallel.recompute=full"]),
    (2, 0, ["parallel.tp=2", "train.micro_batch_size=2"]),
    (4, 3, ["parallel.pp=2", "parallel.ep=2", "train.micro_batch_size=1"]),
    (4, 2, ["parallel.zero=3", "parallel.recompute=full", "train.micro_batch_size=2"]),
    (4, 1, ["parallel.cp=2", "parallel.ep=4", "train.micro_batch_size=2"]),
]
GIB = 2.0**30
_BLOCK = re.compile(r"(<!-- dryrun:memory -->\n).*?(<!-- /dryrun:memory -->)", re.DOTALL)


def main(page: Path) -> None:
    """Runs the ranks and rewrites the table of a page."""
    lines = [
        "| ranks | rank | layout | predicted GiB | measured GiB | error |",
        "| --: | --: | --- | --: | --: | --: |",
    ]
    for world, rank, words in RANKS:
        predicted, measured = run(world, rank, words)
        error = 100 * (predicted / measured - 1)
        layout, sizes = layout_name(words), f"{predicted / GIB:.2f} | {measured / GIB:.2f}"
        lines.append(f"| {world} | {rank} | {layout} | {sizes} | {error:+.0f}% |")
        print(lines[-1], flush=True)
    table = "\n".join(lines) + "\n"
    page.write_text(_BLOCK.sub(lambda match: match[1] + table + match[2], page.read_text("utf-8")), encoding="utf-8")


def layout_name(words: list[str]) -> str:
    """The settings of a rank as the table names them."""
    return " ".join(word.removeprefix("parallel.").removeprefix("train.") for word in words)


def run(world: int, rank: int, words: list[str]) -> tuple[float, float]:
    """Predicted and measured peak of a rank [bytes]."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rank.json"
        command = [sys.executable, "-m", "mindmoe", "dryrun", str(CONFIG), *COMMON, *words]
        command += ["--world", str(world), "--rank", str(rank), "--out", str(out)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        found = json.loads(out.read_text(encoding="utf-8"))
    return found["predicted"]["total"], found["measured"]["peak"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
