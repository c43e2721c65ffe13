"""From timings to a hardware file: an op's rates by least squares on its own timings, nothing on steps (dry)."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.moe.config import BalanceConfig, MoeConfig
from mindmoe.plan.architecture import from_config
from mindmoe.plan.hardware import Hardware
from mindmoe.plan.host import HostConfig, Rate
from mindmoe.plan.step import CostModel, Workload
from mindmoe.proof.measure.steps import EXPERTS, LENGTH, MODEL, TOP_K

Timing = tuple[float, float, float]
"""FLOPs, bytes, seconds."""


def fit_rate(timings: Sequence[Timing]) -> Rate:
    """The rate with the least relative errors; no part of it is negative.

    Args:
        timings: at least one.
    """
    rows = np.array(timings, float)
    seconds, features = rows[:, 2], np.column_stack([np.ones(len(rows)), rows[:, :2]])
    best, parts = np.inf, np.zeros(3)
    for size in (1, 2, 3):
        for chosen in combinations(range(3), size):
            some = features[:, chosen] / seconds[:, None]
            if not some.any(axis=0).all():
                continue
            scale = some.max(axis=0)
            solved = np.linalg.lstsq(some / scale, np.ones(len(rows)), rcond=None)[0] / scale
            error = float(np.square(some @ solved - 1).sum())
            if (solved >= 0).all() and error < best:
                best, parts = error, np.zeros(3)
                parts[list(chosen)] = solved
    each = [float(f"{1e-9 / part:.4g}") if part > 0 else None for part in parts[1:]]
    return Rate(us=round(1e6 * float(parts[0]), 2), gflops=each[0], gb_s=each[1])


def op_rates(rows: Sequence[tuple[str, str, str, float, float, float]]) -> dict[str, dict[str, dict[str, Rate]]]:
    """Rates by precision, op and direction, of the rows that `measure.kernels` prints."""
    grouped: dict[tuple[str, str, str], list[Timing]] = {}
    for precision, op, direction, flops, moved, seconds in rows:
        grouped.setdefault((precision, op, direction), []).append((flops, moved, seconds))
    rates: dict[str, dict[str, dict[str, Rate]]] = {}
    for (precision, op, direction), timings in grouped.items():
        rates.setdefault(precision, {}).setdefault(op, {})[direction] = fit_rate(timings)
    return rates


def verb_rates(rows: Sequence[tuple[str, int, int, int, float]]) -> list[dict[str, Any]]:
    """Rates of collectives, of the rows that `measure.ranks` writes."""
    grouped: dict[tuple[str, int, int], list[Timing]] = {}
    for verb, ranks, size, passed, seconds in rows:
        grouped.setdefault((verb, ranks, size), []).append((0.0, float(passed), seconds))
    return [
        {"verb": verb, "ranks": ranks, "size": size, "rate": fit_rate(timings)}
        for (verb, ranks, size), timings in grouped.items()
    ]


def around_ops(hardware: Hardware, rows: Sequence[tuple[int, int, float]]) -> tuple[float, float, float]:
    """Time of a layer, of a micro-batch and of a step beside the ops that the planner counts [us].

    Args:
        hardware: with these three at zero.
        rows: layers, micro-batches and seconds of steps of small models, in the order of `measure.steps.RUNS`.
    """
    rest = [seconds - counted(hardware, layers, count) for layers, count, seconds in rows]
    (few, _, _), (many, _, _), (_, count, _) = rows
    layer = max(0.0, (rest[1] - rest[0]) / (many - few))
    micro_batch = max(0.0, (rest[2] - rest[0]) / (count - 1) - few * layer)
    return 1e6 * layer, 1e6 * micro_batch, 1e6 * max(0.0, rest[0] - few * layer - micro_batch)


def counted(hardware: Hardware, layers: int, micro_batches: int) -> float:
    """What the planner predicts for a step of a small model of `measure.steps` [s]."""
    from mindmoe.plan.layout import Layout

    model = ModelConfig.model_validate({**MODEL, "num_hidden_layers": layers})
    moe = MoeConfig(num_experts=EXPERTS, num_experts_per_tok=TOP_K, balance=BalanceConfig())
    workload = Workload(
        architecture=from_config("tiny", model, moe), seq_length=LENGTH, global_batch_size=micro_batches, ours=True
    )
    return CostModel(hardware.shared_by(hardware_cores(hardware)), workload).estimate(Layout(zero=0)).step_s


def hardware_cores(hardware: Hardware) -> int:
    """Ranks at which each has one core, as the small steps were measured."""
    return 1 if hardware.host is None else hardware.host.cores


def describe(
    kernels: Mapping[str, Any], verbs: Sequence[Any], steps: Mapping[str, Any], about: Mapping[str, Any]
) -> Hardware:
    """The hardware file of this machine.

    Args:
        kernels: what `measure.kernels` printed.
        verbs: rows of `measure.ranks` for all numbers of ranks.
        steps: what `measure.steps` printed.
        about: processor's name, memory [bytes], disk [bytes/s].
    """
    rates, cores = op_rates(kernels["rows"]), int(kernels["cores"])
    best = {name: _best(kernels["rows"], name) * cores for name in ("bf16", "fp32")}
    messages = verb_rates(verbs)
    link = next(entry["rate"] for entry in messages if entry["verb"] == "message")
    stream = rates["bf16"]["plain"]["forward"].gb_s or 1.0
    return with_around_ops(
        Hardware.model_validate(
            {
                "name": "this machine",
                "peak_tflops": {name: round(rate / 1e12, 4) for name, rate in best.items()},
                "cores": cores,
                "memory_gib": round(about["memory"] / 2**30, 2),
                "hbm_tb_s": round(stream * cores / 1e3, 5),
                "cards_per_node": cores,
                "link": {
                    "topology": "switch",
                    "link_gb_s": link.gb_s or 1.0,
                    "all_to_all": 1.0,
                    "nic_gb_s": link.gb_s or 1.0,
                    "launch_us": link.us,
                    "hop_us": 0.0,
                },
                "communicator_mib": 0.0,
                "reserved_gib": round(steps["process_bytes"] / 2**30, 3),
                "power_w": 100.0,
                "storage_gb_s": round(about["disk"] / 1e9, 3),
                "efficiency": {
                    "gemm": 1.0,
                    "grouped_gemm": 1.0,
                    "attention": 1.0,
                    "attention_half_dim": 1.0,
                    "hbm": 1.0,
                    "half_depth": 1.0,
                    "half_rows": 1.0,
                    "launch_us": rates["bf16"]["plain"]["forward"].us,
                    "overlap_dp": 0.0,
                    "overlap_pp": 0.0,
                },
                "sources": _sources(kernels, about),
                "host": HostConfig.model_validate(
                    {
                        "cores": cores,
                        "scaling": round(min(1.0, kernels["scaling"]), 3),
                        "ops": {precision: {op: both for op, both in ops.items()} for precision, ops in rates.items()},
                        "verbs": messages,
                        "layer_us": 0.0,
                        "micro_batch_us": 0.0,
                        "step_us": 0.0,
                        "process_gib": round(steps["process_bytes"] / 2**30, 3),
                    }
                ),
            }
        ),
        steps["rows"],
    )


def with_around_ops(hardware: Hardware, rows: Sequence[tuple[int, int, float]]) -> Hardware:
    """The hardware with what steps take beside their ops."""
    assert hardware.host is not None
    layer, micro_batch, step = (round(us, 1) for us in around_ops(hardware, rows))
    host = hardware.host.model_copy(update={"layer_us": layer, "micro_batch_us": micro_batch, "step_us": step})
    return hardware.model_copy(update={"host": host})


def _best(rows: Sequence[Any], precision: str) -> float:
    """The best rate of a large product on one core [FLOP/s]."""
    return max(row[3] / row[5] for row in rows if row[0] == precision and row[1] in ("linear", "loss"))


def _sources(kernels: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, str]:
    measured = "[V] measured by `mindmoe doctor --measure`"
    return {
        "machine": f"{about['processor']}, {kernels['cores']} cores; {kernels['isa']} pack, {kernels['gemm']} products",
        "peak_tflops": f"{measured}: the pack's best product on one core, times the cores",
        "memory_gib": "[V] the memory of the machine",
        "hbm_tb_s": f"{measured}: MindSpore's addition on one core, times the cores",
        "link": f"{measured}: a message of mccl between two ranks",
        "power_w": "[M] assumption",
        "storage_gb_s": f"{measured}: written to the working folder with fsync",
        "efficiency": "[D] ones: the figures are what programs reach; times come from `host`",
        "host": f"{measured}: ops by processor time on one core, collectives by the clock",
    }
