"""The ops of a model on Ascend: our kernels for attention and SwiGLU, MindSpore's own ops for the rest.

The routing kernels are siblings of their own (`mindmoe.ops.siblings`); the model's expert FFN stays with the reference
until grouped products can be tried on a card.
"""

from collections.abc import Callable
from dataclasses import replace

from mindspore import Tensor

from mindmoe.ops.ascend.attention import build_attention
from mindmoe.ops.ascend.pack import Pack, load
from mindmoe.ops.ascend.swiglu import Swiglu
from mindmoe.ops.rope import rope_tables
from mindmoe.ops.select import OpSet, OpShape, reference_ops


def ascend_ops(shape: OpShape, pack: Pack | None = None) -> OpSet:
    """The kernels bound to a model.

    Raises:
        UserError: they are not installed, or MindSpore does not run on Ascend.
    """
    pack, model = pack or load(), shape.model
    cos, sin = rope_tables(model, shape.seq_length)

    def attention(window: int) -> Callable[..., Tensor]:
        return build_attention(
            pack,
            cos=cos,
            sin=sin,
            window=window,
            head_dim=model.head_dim,
            documents=shape.documents,
            precision=shape.precision,
        )

    return replace(
        reference_ops(shape),
        name=f"Ascend C for attention and SwiGLU, {shape.precision} operands",
        attention=attention,
        swiglu=Swiglu(pack, model.swiglu_alpha, model.swiglu_limit),
    )
