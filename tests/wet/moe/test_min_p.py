"""The router of examples/router-min-p: its own rule, and the contract that every router keeps."""

import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.moe.config import MoeConfig

T, E = 200, 12


def test_experts_with_a_share_of_the_largest_probability(router_package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(router_package)
    router = {"type": "min_p", "score": "softmax", "p": 0.3, "k_max": 5}
    moe = MoeConfig.model_validate({"num_experts": E, "num_experts_per_tok": 2, "router": router})
    logits = np.random.default_rng(0).standard_normal((T, E)).astype(np.float32)
    found = moe.router.build(moe).route(Tensor(logits, ms.float32), {}, {})
    gates, ids = found["gates"].asnumpy(), found["ids"].asnumpy()
    probs = np.exp(logits.astype(np.float64))
    probs /= probs.sum(1, keepdims=True)
    for t in range(T):
        best = np.argsort(-probs[t])[:5]
        kept = [expert for expert in best if probs[t, expert] >= 0.3 * probs[t].max()]
        assert list(ids[t][ids[t] < E]) == kept
        np.testing.assert_allclose(gates[t][ids[t] < E], probs[t, kept] / probs[t, kept].sum(), rtol=1e-5)
    assert set((ids < E).sum(1)) == {1, 2, 3, 4, 5}


def test_it_keeps_the_contract(root: Path, router_package: Path):
    """In a process of its own, for presets are read when the tests are collected."""
    env = {**os.environ, "MINDMOE_ROUTER_PRESETS": str(root / "examples" / "router-min-p")}
    env["PYTHONPATH"] = os.pathsep.join([str(root), str(router_package)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "min-p or preset"]
    done = subprocess.run(
        [*command, str(root / "tests/wet/moe/test_contract.py")], env=env, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "9 passed" in done.stdout, done.stdout[-300:]
