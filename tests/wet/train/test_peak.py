"""The peak that MFU and HFU are shares of."""

import numpy as np
import pytest

from mindmoe.host.env import Place
from mindmoe.models.gpt_oss.parameters import flops_per_token
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.mesh import Mesh
from mindmoe.plan.hardware import load_hardware
from mindmoe.train.peak import Peak
from mindmoe.train.setup import build_groups, build_kernels

ALONE = Place(rank=0, world=1, local_world=1)


@pytest.fixture
def build():
    def make(config):
        world = build_groups(config, Mesh.build(config.parallel, 1), 0)["world"]
        return Peak(config, build_kernels(config, ALONE), world)

    return make


def test_a_cpu_is_measured_at_several_sizes_and_times(build, tiny_run, monkeypatch):
    """The largest of all rates counts, and measuring again is due after powers of two."""
    peak = build(tiny_run())
    assert peak.value > 1e6 and "measured fp32 GEMM peak" in peak.source
    rates = iter([3e9, 5e9, 4e9, 1e9, 1e9, 1e9, 8e9, 2e9, 2e9])
    monkeypatch.setattr(peak, "_rate", lambda size: next(rates))
    peak.value = 1e9
    assert "5 GFLOP/s, it was 1" in str(peak.after(1))
    assert peak.after(2) is None and peak.after(3) is None and peak.value == 5e9
    assert peak.after(4) is None and peak.value == 5e9
    assert peak.after(8) is None
    assert "8 GFLOP/s, it was 5" in str(peak.after(16))
    assert next(rates, None) is None


def test_shares_are_of_the_peak_and_are_not_cut(build, tiny_run):
    config = tiny_run().model_copy(update={"parallel": ParallelConfig(recompute="full")})
    peak = build(config)
    per_token = flops_per_token(config.model, config.moe, config.train.seq_length)
    peak.value = per_token * 10.0
    mfu, hfu = peak.shares(20.0)
    assert mfu == pytest.approx(2.0)
    assert 2.0 < hfu < 2.0 * 4 / 3


def test_an_accelerator_has_the_peak_on_file(tiny_run):
    config = tiny_run(train={"precision": "bf16"})
    world = build_groups(config, Mesh.build(config.parallel, 1), 0)["world"]
    kernels = build_kernels(config, ALONE)
    config = config.model_copy(update={"train": config.train.model_copy(update={"device": "ascend"})})
    peak = Peak(config, kernels, world)
    assert peak.value == load_hardware("ascend-910b2").peak("bf16")
    assert "1 ascend-910b2 on file" in peak.source and peak.after(1) is None
    assert np.isfinite(peak.shares(1.0)).all()
