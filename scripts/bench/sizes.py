"""The models that the benchmark trains; every contender reads the same numbers."""

from typing import Any

TINY = {
    "hidden": 256,
    "layers": 4,
    "experts": 32,
    "top_k": 4,
    "expert_width": 256,
    "heads": 8,
    "kv_heads": 2,
    "head_dim": 64,
    "vocab": 8192,
    "seq_length": 512,
    "batch": 4,
    "window": 128,
}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    "mid": {**TINY, "hidden": 512, "layers": 8, "expert_width": 512},
    "many": {**TINY, "experts": 128},
    "long": {**TINY, "seq_length": 4096, "batch": 1},
}
