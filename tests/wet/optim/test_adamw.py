"""AdamW against the textbook loop in float64: bias correction, decoupled decay, exclusions, scale."""

import numpy as np
from mindspore import Parameter, Tensor

from mindmoe.model.shapes import ParamSpec
from mindmoe.optim.adamw import AdamW, clip_scale, squared_norm
from mindmoe.optim.config import OptimConfig


def test_ten_steps():
    rng = np.random.default_rng(0)
    config = OptimConfig(beta1=0.9, beta2=0.95, eps=1e-6, weight_decay=0.1)
    specs = {"w": ParamSpec(name="w", shape=(4, 3), axes=(None, None), decay=True),
             "norm": ParamSpec(name="norm", shape=(3,), axes=(None,))}
    want = {name: rng.standard_normal(spec.shape) for name, spec in specs.items()}
    params = [Parameter(Tensor(value.astype(np.float32)), name=name) for name, value in want.items()]
    optimizer = AdamW(params, specs, config)
    first = {name: np.zeros(spec.shape) for name, spec in specs.items()}
    second = {name: np.zeros(spec.shape) for name, spec in specs.items()}
    for step in range(10):
        lr, scale = 1e-2 / (step + 1), 0.5
        grads = {name: rng.standard_normal(spec.shape) for name, spec in specs.items()}
        optimizer(tuple(Tensor(grad.astype(np.float32)) for grad in grads.values()), Tensor(np.float32(scale)),
                  *optimizer.scalars(step, lr))
        for name, grad in grads.items():
            g = grad * scale
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            m, v = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.95 ** (step + 1))
            want[name] = want[name] - lr * (m / (np.sqrt(v) + 1e-6) + 0.1 * specs[name].decay * want[name])
    for param in params:
        np.testing.assert_allclose(param.asnumpy(), want[param.name], atol=2e-6)


def test_norm_and_clipping():
    grads = (Tensor(np.float32([[3.0]])), Tensor(np.float32([0.0, 4.0])))
    assert squared_norm(grads).asnumpy() == 25.0
    assert clip_scale(5.0, 1.0) == 0.2
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(5.0, 0.0) == 1.0
