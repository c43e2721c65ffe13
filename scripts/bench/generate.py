"""Prefill and decoding, ours and Hugging Face's, on the same weights, in turns.

generate.py [--sizes tiny ...] [--prompt N] [--new N] [--rounds N] [--out FILE]
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from generator import GENERATORS
from rich.console import Console
from rich.table import Table
from sizes import SIZES
from warm import Warm, machine, write_figures


def save_weights(size: str, folder: Path) -> None:
    """A Hugging Face folder with random weights, large enough that greedy choices are far apart."""
    import torch
    from peers import hugging_face_config
    from transformers import GptOssForCausalLM

    torch.manual_seed(0)
    config = hugging_face_config(SIZES[size], "eager")
    config.initializer_range = 0.1
    GptOssForCausalLM(config).save_pretrained(folder)


def bench(size: str, prompt: int, new: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Figures of every contender at a size."""
    with tempfile.TemporaryDirectory() as folder:
        save_weights(size, Path(folder))
        warm = [
            Warm(["generator.py", name, folder, str(count), str(prompt), str(new)], count)
            for name in GENERATORS
            for count in dict.fromkeys((1, threads))  # single tokens are small work: one thread may be the faster
        ]
        replies: list[list[dict[str, Any]]] = [[] for _ in warm]
        for _ in range(rounds):
            for contender, answers in zip(warm, replies, strict=True):
                answers.append(contender.ask(1))
        last = [contender.finish() for contender in warm]
    rows = []
    reference = replies[[contender.name for contender in warm].index("HF generate, fp32")][0]["tokens"]
    for contender, answers, peak in zip(warm, replies, last, strict=True):
        prefill, decode = ([second for a in answers for second in a[key]] for key in ("prefill", "decode"))
        rows.append(
            {
                "name": contender.name,
                "threads": contender.threads,
                "prefill_s": statistics.median(prefill),
                "decode_tokens_per_s": (new - 1) / statistics.median(decode),
                "decode_min": (new - 1) / max(decode),
                "decode_max": (new - 1) / min(decode),
                "same_tokens_as_hf_fp32": sum(a == b for a, b in zip(answers[0]["tokens"], reference, strict=True)),
                **peak,
            }
        )
    return rows


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny"], choices=sorted(SIZES))
    parser.add_argument("--prompt", type=int, default=384)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    about = machine(threads)
    for size in args.sizes:
        rows = bench(size, args.prompt, args.new, args.rounds, threads)
        table = Table(title=f"{size}, prompt {args.prompt}, {args.new} new tokens", title_justify="left")
        for header in ("generation", "prefill s", "decode tokens/s", "min .. max", "as HF fp32", "memory"):
            table.add_column(header)
        for row in rows:
            table.add_row(
                f"{row['name']}, {row['threads']} threads",
                f"{row['prefill_s']:.3f}",
                f"{row['decode_tokens_per_s']:.0f}",
                f"{row['decode_min']:.0f} .. {row['decode_max']:.0f}",
                f"{row['same_tokens_as_hf_fp32']}/{args.new}",
                f"{row['peak_bytes'] / 2**30:.2f} GiB",
            )
        Console(width=120).print(table)
        write_figures(
            args.out, "generate", size, {"machine": about, "prompt": args.prompt, "new": args.new, "rows": rows}
        )


if __name__ == "__main__":
    main()
