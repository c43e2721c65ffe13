"""One contender of the generation bench as a process: greedy decoding after a prompt, on weights of one folder.

Usage: generator.py NAME FOLDER THREADS PROMPT NEW
Protocol as in contender.py, but each number read from stdin runs that many generations, and the reply is
{"prefill": [seconds], "decode": [seconds], "tokens": the generated numbers}.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Generate = Callable[[np.ndarray, int], tuple[float, float, list[int]]]
"""Prompt (1, S) and number of new tokens -> seconds to the first token, seconds of the others, tokens."""


def ours(folder: Path, threads: int, length: int, precision: str) -> Generate:
    """mindmoe with its cache."""
    from mindmoe.host.env import quiet_mindspore

    quiet_mindspore(threads)
    import mindspore as ms

    from mindmoe.inference.decoding import Generation
    from mindmoe.interop.hf import assign
    from mindmoe.interop.hf_config import read_config
    from mindmoe.interop.source import FolderSource
    from mindmoe.models.decoder import CausalLM
    from mindmoe.ops.contract import OpShape
    from mindmoe.ops.select import select_ops

    ms.set_device("CPU")
    model, moe = read_config(folder)
    shape = OpShape(model=model, moe=moe, seq_length=length, precision="bf16" if precision == "bf16" else "fp32")
    net = CausalLM(model, moe, select_ops(shape, device="cpu", kernels="auto", threads=threads))
    with FolderSource(folder) as source:
        assign(net, source)
    generation = Generation(net, length)

    def generate(prompt: np.ndarray, new: int) -> tuple[float, float, list[int]]:
        generation.restart()
        began = time.perf_counter()
        tokens = [int(generation.extend(prompt)[0].argmax())]
        first = time.perf_counter()
        for _ in range(new - 1):
            tokens.append(int(generation.extend(np.array([[tokens[-1]]], np.int32))[0].argmax()))
        return first - began, time.perf_counter() - first, tokens

    return generate


def hugging_face(folder: Path, threads: int, experts: str, dtype: str) -> Generate:
    """GptOssForCausalLM.generate with its default cache; the first token is timed by a generation of one."""
    import torch
    from transformers import GptOssForCausalLM

    torch.set_num_threads(threads)
    net = GptOssForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", experts_implementation=experts
    ).eval()
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0

    def run(prompt: np.ndarray, new: int) -> tuple[float, list[int]]:
        ids = torch.tensor(prompt).long()
        began = time.perf_counter()
        with torch.inference_mode():
            out = net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
        return time.perf_counter() - began, out[0, prompt.shape[1] :].tolist()

    def generate(prompt: np.ndarray, new: int) -> tuple[float, float, list[int]]:
        first, _ = run(prompt, 1)
        whole, tokens = run(prompt, new)
        return first, whole - first, tokens

    return generate


GENERATORS: dict[str, Callable[[Path, int, int], Generate]] = {
    "mindmoe, fp32": lambda folder, threads, length: ours(folder, threads, length, "fp32"),
    "mindmoe, bf16": lambda folder, threads, length: ours(folder, threads, length, "bf16"),
    "HF generate, fp32": lambda folder, threads, _: hugging_face(folder, threads, "eager", "float32"),
    "HF generate, bf16": lambda folder, threads, _: hugging_face(folder, threads, "eager", "bfloat16"),
    "HF generate, grouped GEMM, bf16": lambda folder, threads, _: hugging_face(
        folder, threads, "grouped_mm", "bfloat16"
    ),
}


def main() -> None:
    """Serves one contender until stdin ends."""
    name, folder, threads, length, new = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that print must not mix with the protocol
    started = time.perf_counter()
    generate = GENERATORS[name](folder, threads, length + new)
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    prompt = np.random.default_rng(0).integers(0, vocab, (1, length)).astype(np.int32)
    generate(prompt, 2)
    print(json.dumps({"first": time.perf_counter() - started}), file=replies)
    for line in sys.stdin:
        results = [generate(prompt, new) for _ in range(int(line))]
        prefill, decode, tokens = zip(*results, strict=True)
        print(json.dumps({"prefill": prefill, "decode": decode, "tokens": tokens[0]}), file=replies)
    print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), file=replies)


if __name__ == "__main__":
    main()
