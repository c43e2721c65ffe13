"""AdamW against the textbook loop in float64: bias correction, decoupled decay, exclusions, scale."""

import numpy as np
from mindspore import Parameter, Tensor

from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.ops.contract import OpShape
from mindmoe.ops.select import reference_ops
from mindmoe.optim.optimizer import clip_scale


def ops():
    model = ModelConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        intermediate_size=8,
    )  # fmt: skip
    return reference_ops(OpShape(model=model, moe=None, seq_length=4))


def parameters(values: list[np.ndarray], name: str) -> tuple[Parameter, ...]:
    return tuple(Parameter(Tensor(value.astype(np.float32)), name=f"{name}{i}") for i, value in enumerate(values))


def test_ten_steps():
    rng = np.random.default_rng(0)
    shapes, decays = [(4, 3), (3,)], [True, False]
    want = [rng.standard_normal(shape) for shape in shapes]
    first, second = [np.zeros(shape) for shape in shapes], [np.zeros(shape) for shape in shapes]
    state = [parameters(values, name) for values, name in ((want, "w"), (first, "m"), (second, "v"))]
    adamw = ops().adamw(decays, beta1=0.9, beta2=0.95, eps=1e-6, weight_decay=0.1)
    for step in range(1, 11):
        lr, scale = 1e-2 / step, 0.5
        grads = [rng.standard_normal(shape) for shape in shapes]
        adamw(
            *state,
            tuple(Tensor(grad.astype(np.float32)) for grad in grads),
            *(Tensor(np.float32(value)) for value in (lr, scale, step)),
        )
        for i, grad in enumerate(grads):
            first[i] = 0.9 * first[i] + 0.1 * scale * grad
            second[i] = 0.95 * second[i] + 0.05 * (scale * grad) ** 2
            m, v = first[i] / (1 - 0.9**step), second[i] / (1 - 0.95**step)
            want[i] = want[i] - lr * (m / (np.sqrt(v) + 1e-6) + 0.1 * decays[i] * want[i])
    for param, value in zip(state[0], want, strict=True):
        np.testing.assert_allclose(param.asnumpy(), value, atol=2e-6)


def test_norm_and_clipping():
    grads = (Tensor(np.float32([[3.0]])), Tensor(np.float32([0.0, 4.0])))
    assert ops().square_sum(grads).asnumpy() == 25.0
    assert clip_scale(5.0, 1.0) == 0.2
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(5.0, 0.0) == 1.0
