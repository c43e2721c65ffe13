"""The ops of every sibling that runs here, and runs of an op with gradients."""

import shutil
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.host.errors import UserError
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.moe.config import MoeConfig
from mindmoe.ops.ascend.pack import load
from mindmoe.ops.contract import OpShape
from mindmoe.ops.select import ascend_ops, cpu_ops, reference_ops

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels"))

from mindspore_pack import host_model_pack  # noqa: E402

ALPHA, LIMIT = 1.702, 7.0
B, S, D, H, KV, HD, E, K, F, V = 2, 70, 48, 4, 2, 16, 5, 2, 40, 300
WINDOW = 20


def op_shape(precision="fp32", documents=True, **model):
    sizes = {
        "vocab_size": V, "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": H, "head_dim": HD,
        "num_key_value_heads": KV, "intermediate_size": F,
    }  # fmt: skip
    return OpShape(
        model=ModelConfig(**{**sizes, **model}), moe=MoeConfig(num_experts=E, num_experts_per_tok=K),
        seq_length=S, precision=precision, documents=documents,
    )  # fmt: skip


def ascend_pack(where):
    """The Ascend C kernels on a `card` or on the `host model`; skips where there is none."""
    if where == "card":
        try:
            return load()
        except UserError as error:
            pytest.skip(str(error))
    if shutil.which("g++") is None:
        pytest.skip("the host model needs g++")
    return host_model_pack()


def ops_of(sibling, shape):
    """The ops of a sibling, such as `ascend on card`; skips where it does not run."""
    name, *where = sibling.split(" on ")
    if name == "cpu" and shutil.which("g++") is None:
        pytest.skip("the CPU pack needs g++")
    if where:
        return ascend_ops(shape, ascend_pack(where[0]))
    return cpu_ops(shape, 2) if name == "cpu" else reference_ops(shape)


def tensor(x):
    return Tensor(np.asarray(x).astype(np.int32 if np.asarray(x).dtype.kind == "i" else np.float32))


def run(op, inputs, douts, wrt, graph):
    """Outputs, and gradients of sum(dout * output) of the inputs `wrt`, as float64 arrays."""
    weights = [tensor(d) for d in douts]

    def loss(*args):
        out = op(*args)
        outs = out if isinstance(out, tuple) else (out,)
        total = Tensor(0.0)
        for i in range(len(weights)):
            total = total + (outs[i].astype(ms.float32) * weights[i]).sum()
        return total

    outs, gradients = (ms.jit(op) if graph else op)(*inputs), ()
    if wrt:
        gradient = ms.grad(loss, tuple(wrt))
        gradients = (ms.jit(gradient) if graph else gradient)(*inputs)
    outs, gradients = (x if isinstance(x, tuple) else (x,) for x in (outs, gradients))
    assert len(gradients) == len(wrt)
    plain = [x if x.dtype == ms.int32 else x.astype(ms.float32) for x in (*outs, *gradients)]
    return [x.asnumpy() for x in plain[: len(outs)]], [x.asnumpy().astype(np.float64) for x in plain[len(outs) :]]
