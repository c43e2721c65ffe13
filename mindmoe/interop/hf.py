"""Reading Hugging Face GptOss folders: config.json to our sections, safetensors to our parameters."""

import json
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor
from safetensors import safe_open

from mindmoe.errors import UserError
from mindmoe.model.config import ModelConfig, YarnConfig
from mindmoe.model.decoder import CausalLM
from mindmoe.moe.config import MoeConfig
from mindmoe.ops.select import OpShape, reference_ops

_SAME_NAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "sliding_window",
    "layer_types",
    "attention_bias",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
)


def _yarn(rope: dict[str, Any]) -> YarnConfig | None:
    """The YaRN section of a rope dictionary; None for plain RoPE."""
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind != "yarn":
        raise UserError(f"rope_type={kind!r} in config.json is not supported", "use yarn or default")
    keys = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
    given = {key: rope[key] for key in keys if rope.get(key) is not None}
    return YarnConfig(**given, truncate=rope.get("truncate", True))


def read_config(folder: Path) -> tuple[ModelConfig, MoeConfig]:
    """The model and moe sections of a Hugging Face GptOss config.json.

    Raises:
        UserError: the file is missing, or of another architecture.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path} not found", "give the folder that save_pretrained wrote")
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw.get("model_type") != "gpt_oss":
        raise UserError(f"{path}: model_type={raw.get('model_type')!r} is not gpt_oss", "give a GptOss folder")
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    model = ModelConfig(
        **{key: raw[key] for key in _SAME_NAME if raw.get(key) is not None},
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 150000.0))),
        rope_scaling=_yarn(rope),
        swiglu_limit=raw.get("swiglu_limit", 7.0),
    )
    moe = MoeConfig(num_experts=raw["num_local_experts"], num_experts_per_tok=raw["num_experts_per_tok"])
    return model, moe


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder's safetensors files as fp32, by name.

    Raises:
        UserError: there is none, or one has a dtype that NumPy lacks.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors file", "save the model with safe_serialization")
    tensors = {}
    for file in files:
        with safe_open(file, framework="np") as handle:
            for name in handle.keys():  # noqa: SIM118 (not a dict)
                dtype = handle.get_slice(name).get_dtype()
                if dtype not in ("F16", "F32", "F64"):
                    raise UserError(f"{file}: {name} is stored as {dtype}", "save the model in float32 or float16")
                tensors[name] = handle.get_tensor(name).astype(np.float32)
    return tensors


def assign(net: CausalLM, tensors: dict[str, np.ndarray]) -> None:
    """Sets every parameter of `net` from `tensors`.

    Raises:
        UserError: names or shapes differ; all of them are listed and nothing is assigned.
    """
    params: dict[str, Parameter] = {param.name: param for param in net.get_parameters()}
    wrong = [f"missing {name}" for name in params.keys() - tensors.keys()]
    wrong += [f"unexpected {name}" for name in tensors.keys() - params.keys()]
    wrong += [
        f"{name} has shape {tensors[name].shape}, the model wants {tuple(params[name].shape)}"
        for name in params.keys() & tensors.keys()
        if tensors[name].shape != tuple(params[name].shape)
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} tensors do not fit the model: " + "; ".join(sorted(wrong)),
            "check that config.json belongs to these weights",
        )
    for name, param in params.items():
        param.set_data(Tensor(tensors[name], ms.float32))


def load(path: str | Path, *, max_length: int = 1024, documents: bool = False) -> CausalLM:
    """The model of a Hugging Face GptOss folder, in fp32 on the reference ops.

    Args:
        path: folder with config.json and safetensors files.
        max_length: longest sequence the model will be called with [tokens].
        documents: whether attention stays inside segments.
    """
    folder = Path(path)
    model, moe = read_config(folder)
    kernels = reference_ops(OpShape(model=model, moe=moe, seq_length=max_length, documents=documents))
    net = CausalLM(model, moe, kernels)
    tensors = read_tensors(folder)
    assign(net, tensors)
    return net
