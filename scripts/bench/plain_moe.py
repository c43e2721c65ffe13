"""A gpt-oss-shaped decoder in plain PyTorch, written for speed: what a careful PyTorch user would train on a CPU.

Fused query-key-value projection, scaled_dot_product_attention, experts by grouped products over sorted rows. It leaves
out attention sinks, which scaled_dot_product_attention does not have, and so does slightly less than its rivals.
"""

import torch
from sizes import Size
from torch import Tensor, nn
from torch.nn import functional


class Norm(nn.Module):
    """RMSNorm in the dtype of its input."""

    def __init__(self, hidden: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), 1e-5)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half RoPE of x (B, N, S, hd)."""
    first, second = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def sliding_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention of (B, H, S, hd) to the last `window` keys; work grows with S * window, not S * S.

    Queries go in blocks of `window`, which see their own block of keys and the one before.
    """
    batch, heads, length, width = q.shape
    blocks = length // window
    queries = q.view(batch, heads, blocks, window, width).transpose(1, 2).flatten(0, 1)

    def with_previous(x: Tensor) -> Tensor:
        padded = functional.pad(x, (0, 0, window, 0))
        return padded.unfold(2, 2 * window, window).permute(0, 2, 1, 4, 3).flatten(0, 1)

    i, j = torch.arange(window)[:, None], torch.arange(2 * window)[None]
    band = ((j > i) & (j <= i + window)).expand(blocks, 1, window, 2 * window).clone()
    band[0, :, :, :window] = False
    mask = band.repeat(batch, 1, 1, 1)
    out = functional.scaled_dot_product_attention(queries, with_previous(k), with_previous(v), attn_mask=mask)
    return out.view(batch, blocks, heads, window, width).transpose(1, 2).reshape(q.shape)


class Attention(nn.Module):
    """Causal attention with grouped queries; window 0 is full."""

    def __init__(self, size: Size, window: int):
        super().__init__()
        self.heads, self.kv_heads, self.width = size["heads"], size["kv_heads"], size["head_dim"]
        self.window = window
        self.qkv = nn.Linear(size["hidden"], (self.heads + 2 * self.kv_heads) * self.width)
        self.out = nn.Linear(self.heads * self.width, size["hidden"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        split = [self.heads, self.kv_heads, self.kv_heads]
        heads = self.qkv(x).view(*x.shape[:2], -1, self.width).transpose(1, 2)
        q, k, v = heads.split(split, 1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if self.window:
            y = sliding_attention(q, k, v, self.window)
        else:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """Top-k routing and grouped products over rows sorted by expert; dropless."""

    def __init__(self, size: Size):
        super().__init__()
        hidden, inner, experts = size["hidden"], size["expert_width"], size["experts"]
        self.top_k = size["top_k"]
        self.router = nn.Linear(hidden, experts)
        self.gate_up = nn.Parameter(0.02 * torch.randn(experts, hidden, 2 * inner))
        self.gate_up_bias = nn.Parameter(torch.zeros(experts, 2 * inner))
        self.down = nn.Parameter(0.02 * torch.randn(experts, inner, hidden))
        self.down_bias = nn.Parameter(torch.zeros(experts, hidden))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        scores, ids = self.router(tokens).topk(self.top_k, -1)
        gates = scores.softmax(-1).flatten()
        expert, order = ids.flatten().sort(stable=True)
        token = order // self.top_k
        ends = torch.bincount(expert, minlength=len(self.gate_up)).cumsum(0).int()
        rows, gate_up, down = tokens[token], self.gate_up, self.down
        if torch.is_autocast_enabled("cpu"):
            rows, gate_up, down = rows.bfloat16(), gate_up.bfloat16(), down.bfloat16()
        h = functional.grouped_mm(rows, gate_up, offs=ends) + self.gate_up_bias[expert].to(rows.dtype)
        gate, up = h.chunk(2, -1)
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        activated = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        y = functional.grouped_mm(activated, down, offs=ends) + self.down_bias[expert].to(rows.dtype)
        y = y * gates[order, None].to(y.dtype)
        return torch.zeros_like(tokens).index_add(0, token, y.to(tokens.dtype)).view_as(x)


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, size: Size, window: int):
        super().__init__()
        self.attention_norm, self.attention = Norm(size["hidden"]), Attention(size, window)
        self.ffn_norm, self.experts = Norm(size["hidden"]), Experts(size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.experts(self.ffn_norm(x))


class PlainMoe(nn.Module):
    """Token numbers (B, S) -> logits (B, S, V)."""

    def __init__(self, size: Size):
        super().__init__()
        width, length = size["head_dim"], size["seq_length"]
        angles = torch.outer(torch.arange(length).float(), 150000.0 ** (-torch.arange(0, width, 2).float() / width))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.embed = nn.Embedding(size["vocab"], size["hidden"])
        self.blocks = nn.ModuleList(Block(size, 0 if layer % 2 else size["window"]) for layer in range(size["layers"]))
        self.norm, self.head = Norm(size["hidden"]), nn.Linear(size["hidden"], size["vocab"], bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))
