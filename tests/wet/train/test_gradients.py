"""Gradients of the whole model against finite differences of its loss, parameter by parameter."""

import numpy as np
from mindspore import Tensor

from mindmoe.host.env import Place
from mindmoe.train.setup import build_trainer


def test_slope_of_the_loss_along_each_gradient(tiny_run, batch):
    """Along g / |g| the loss rises by |g|. Every expert is chosen, as a choice that changes makes the loss jump."""
    balance = {"aux_coef": 0.0, "z_coef": 0.0, "bias_rate": 0.0}
    config = tiny_run(train={"kernels": "cpu", "mode": "graph"}, moe={"balance": balance, "num_experts_per_tok": 6})
    trainer = build_trainer(config, Place(rank=0, world=1, local_world=1))
    rows = batch(4, seed=3)
    grads, _ = trainer.step.gradients([rows], rows.loss_mask.sum())
    params = [tensor.param for tensor in trainer.step.parts[0].owned.tensors]
    assert len(params) == len(grads) > 20

    def loss() -> float:
        return trainer.step.evaluate(rows) / float(rows.loss_mask.sum())

    wrong = {}
    for param, grad in zip(params, grads, strict=True):
        value, slope = param.asnumpy().copy(), grad.asnumpy()
        norm = np.linalg.norm(slope)
        if norm < 1e-3:  # the loss barely depends on it: fp32 shows nothing
            continue
        losses = []
        for side in (0.02, -0.02):
            param.set_data(Tensor((value + side * slope / norm).astype(np.float32)))
            losses.append(loss())
        param.set_data(Tensor(value))
        measured = (losses[0] - losses[1]) / 0.04
        if abs(measured / norm - 1) > 0.03 + 2e-5 / norm:
            wrong[param.name] = (measured, float(norm))
    assert not wrong, wrong
