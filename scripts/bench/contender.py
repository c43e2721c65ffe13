"""One contender as a process: builds its step, then runs as many steps as it is asked for, line by line.

Usage: contender.py NAME SIZE THREADS
Protocol: prints {"first": seconds, "loss": value}; for each number read from stdin runs that many steps and prints
their seconds; at the end of stdin prints {"peak_bytes": ...}.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
from sizes import SIZES


def ours(size: dict, kernels: str, precision: str, threads: int) -> Callable[[], float]:
    """A full step of mindmoe: forward, backward, clipping, AdamW."""
    from mindmoe.env import Place, quiet_mindspore

    quiet_mindspore(threads)
    from mindmoe.config import RunConfig, resolve
    from mindmoe.data.loader import Batch
    from mindmoe.train.setup import build_trainer, start_device

    config = resolve(
        RunConfig.model_validate(
            {
                "name": "bench",
                "model": {
                    "vocab_size": size["vocab"],
                    "hidden_size": size["hidden"],
                    "num_hidden_layers": size["layers"],
                    "num_attention_heads": size["heads"],
                    "num_key_value_heads": size["kv_heads"],
                    "head_dim": size["head_dim"],
                    "intermediate_size": size["expert_width"],
                    "sliding_window": size["window"],
                },
                "moe": {"num_experts": size["experts"], "num_experts_per_tok": size["top_k"], "balance": {}},
                "train": {
                    "steps": 1000,
                    "seq_length": size["seq_length"],
                    "global_batch_size": size["batch"],
                    "micro_batch_size": size["batch"],
                    "kernels": kernels,
                    "precision": precision,
                },
                "data": {"sources": "none"},
                "launch": {"threads": threads},
            }
        ),
        1,
    )
    place = Place(rank=0, world=1, local_world=1)
    start_device(config, place)
    trainer = build_trainer(config, place)
    inputs, labels = tokens(size)
    batch = Batch(inputs, labels, np.ones(inputs.shape, np.float32), np.zeros(inputs.shape, np.int32))
    count = iter(range(10**9))
    return lambda: trainer.step.run(next(count), [batch], float(inputs.size), 1e-3, False).loss


def hugging_face(size: dict, threads: int) -> Callable[[], float]:
    """A full step of GptOssForCausalLM, eager attention and experts, fp32, with PyTorch's fused AdamW."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = GptOssConfig(
        hidden_size=size["hidden"],
        intermediate_size=size["expert_width"],
        num_hidden_layers=size["layers"],
        num_local_experts=size["experts"],
        num_experts_per_tok=size["top_k"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv_heads"],
        head_dim=size["head_dim"],
        vocab_size=size["vocab"],
        sliding_window=size["window"],
        max_position_embeddings=131072,
        pad_token_id=None,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
        tie_word_embeddings=False,
    )
    config._attn_implementation = config._experts_implementation = "eager"
    net = GptOssForCausalLM(config)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.1, fused=True)
    inputs, labels = (torch.tensor(array).long() for array in tokens(size))

    def step() -> float:
        optimizer.zero_grad()
        logits = net(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.view(-1, size["vocab"]), labels.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
        optimizer.step()
        return loss.item()

    return step


def tokens(size: dict) -> tuple[np.ndarray, np.ndarray]:
    """The same random rows for everyone."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, size["vocab"], (size["batch"], size["seq_length"] + 1)).astype(np.int32)
    return rows[:, :-1].copy(), rows[:, 1:].copy()


CONTENDERS: dict[str, Callable[[dict, int], Callable[[], float]]] = {
    "mindmoe fp32": lambda size, threads: ours(size, "auto", "fp32", threads),
    "mindmoe bf16": lambda size, threads: ours(size, "auto", "bf16", threads),
    "mindmoe fp32, plain MindSpore ops": lambda size, threads: ours(size, "reference", "fp32", threads),
    "Hugging Face GptOss, PyTorch eager fp32": hugging_face,
}


def main() -> None:
    """Serves one contender until stdin ends."""
    name, size, threads = sys.argv[1], SIZES[sys.argv[2]], int(sys.argv[3])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that print must not mix with the protocol
    started = time.perf_counter()
    step = CONTENDERS[name](size, threads)
    loss = step()
    print(json.dumps({"first": time.perf_counter() - started, "loss": loss}), file=replies)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), file=replies)
    print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), file=replies)


if __name__ == "__main__":
    main()
