"""The PyTorch contenders: Hugging Face's GptOss and a plain MoE, each as a full train step."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from sizes import Size
from torch import Tensor, nn

Precision = Literal["fp32", "autocast", "bf16"]
"""fp32; bf16 autocast over fp32 weights, which is what a run that must converge uses; weights and moments in bf16."""


def hugging_face_config(size: Size, experts: str) -> Any:
    """GptOss at a size; its attention has an eager path only on a CPU, because of the sinks."""
    from transformers import GptOssConfig

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
    config._attn_implementation = "eager"
    config._experts_implementation = experts
    return config


def hugging_face(size: Size, experts: str) -> tuple[nn.Module, Callable[..., Tensor]]:
    """GptOssForCausalLM and its logits as a function of it and tokens."""
    from transformers import GptOssForCausalLM

    net = GptOssForCausalLM(hugging_face_config(size, experts))
    return net, lambda model, tokens: model(input_ids=tokens, use_cache=False).logits


def plain(size: Size) -> tuple[nn.Module, Callable[..., Tensor]]:
    """The plain MoE, likewise."""
    from plain_moe import PlainMoe

    return PlainMoe(size), lambda model, tokens: model(tokens)


def train_step(
    build: Callable[[], tuple[nn.Module, Callable[..., Tensor]]],
    precision: Precision,
    compiled: bool,
    threads: int,
    batch: tuple[np.ndarray, np.ndarray],
) -> Callable[[], float]:
    """A full step: forward, backward, clipping, fused AdamW. Returns its loss.

    Args:
        build: the model and its logits.
        precision: see Precision.
        compiled: through torch.compile.
        threads: of PyTorch.
        batch: token numbers and labels (B, S).
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net, logits = build()
    net = net.to(torch.bfloat16) if precision == "bf16" else net
    model = torch.compile(net) if compiled else net
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.1, fused=True)
    tokens, labels = (torch.tensor(array).long() for array in batch)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            scores = logits(model, tokens)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1).float(), labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
        optimizer.step()
        return loss.item()

    return step
