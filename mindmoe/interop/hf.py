"""Hugging Face GptOss folders as models, for comparison and use on one process."""

from pathlib import Path

import mindspore as ms
from mindspore import Tensor

from mindmoe.interop.export import check_names, weight_shapes
from mindmoe.interop.hf_config import read_config
from mindmoe.interop.source import FolderSource, Source
from mindmoe.models.decoder import CausalLM
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.moe.config import MoeConfig
from mindmoe.ops.contract import OpShape
from mindmoe.ops.select import reference_ops


def assign(net: CausalLM, source: Source) -> None:
    """Sets every parameter of `net`.

    Raises:
        UserError: names or shapes differ; all of them are listed and nothing is assigned.
    """
    params = {param.name: param for param in net.get_parameters()}
    check_names(source.shapes, {name: tuple(param.shape) for name, param in params.items()}, "the folder")
    for name, param in params.items():
        param.set_data(Tensor(source.rows(name, 0, source.shapes[name][0]), ms.float32))


def build(
    model: ModelConfig, moe: MoeConfig | None, source: Source, *, max_length: int, documents: bool = False
) -> CausalLM:
    """A model in fp32 on the reference ops, with the weights of a source.

    Args:
        model, moe: the model.
        source: every parameter of it.
        max_length: longest sequence the model will be called with [tokens].
        documents: whether attention stays inside segments.

    Raises:
        UserError: the source holds other tensors than the model.
    """
    check_names(source.shapes, weight_shapes(model, moe), "the folder")  # before memory is taken for a wrong size
    kernels = reference_ops(OpShape(model=model, moe=moe, seq_length=max_length, documents=documents))
    net = CausalLM(model, moe, kernels)
    assign(net, source)
    return net


def load(path: str | Path, *, max_length: int = 1024, documents: bool = False) -> CausalLM:
    """The model of a Hugging Face GptOss folder, in fp32 on the reference ops.

    Called with token ids (B, S) int32 it gives logits (B, S, V) fp32.

    Args:
        path: folder with config.json and safetensors files: fp32, fp16, bf16 or MXFP4.
        max_length: longest sequence the model will be called with [tokens].
        documents: whether attention stays inside segments.

    Raises:
        UserError: the folder is no GptOss, is damaged, or computes what mindmoe does not.
    """
    folder = Path(path)
    model, moe = read_config(folder)
    with FolderSource(folder) as source:
        return build(model, moe, source, max_length=max_length, documents=documents)
