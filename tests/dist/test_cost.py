"""Bytes that a rank sends in a step, counted by the collectives, against the closed form of each axis."""

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest

from mindmoe.config.load import load_config
from mindmoe.models.gpt_oss.parameters import param_specs

LAYOUTS = ["dp2", "tp2", "pp2", "cp2,ring", "cp2,ulysses", "dp2,ep2", "dp2,ep2,all_gather", "dp2,zero1", "dp2,zero2"]
LAYOUTS += ["dp2,zero3"]
VOCAB = 384
RUN = load_config(Path(__file__).resolve().parents[2] / "configs" / "equiv.yaml", [f"model.vocab_size={VOCAB}"])
MODEL, MOE, TRAIN = RUN.model, RUN.moe, RUN.train
WORD = 4  # [bytes] everything travels in fp32
MICRO = TRAIN.global_batch_size // TRAIN.micro_batch_size
LAYERS, WIDTH, TOP_K = MODEL.num_hidden_layers, MODEL.hidden_size, MOE.num_experts_per_tok
TOKENS = TRAIN.micro_batch_size * TRAIN.seq_length  # of a micro-batch, over all ranks
HIDDEN = TOKENS * WIDTH * WORD
QUERIES, KEYS = MODEL.num_attention_heads * MODEL.head_dim, MODEL.num_key_value_heads * MODEL.head_dim
HALF = 1 / 2  # (n - 1) / n of two ranks: of what is exchanged, a rank keeps its own part


def params(*axes: str) -> int:
    """Numbers in the trainable parameters that are cut along none of these logical axes."""
    specs = param_specs(MODEL, MOE).values()
    return sum(prod(spec.shape) for spec in specs if spec.trainable and not set(axes) & set(spec.axes))


def rows_exchanged(out: Path) -> int:
    """Assignments to experts of the other rank, over both ranks, in the step whose routing was recorded."""
    local = MOE.num_experts // 2
    rows = 0
    for rank in (0, 1):
        with np.load(out / "dp2-ep2" / f"rank-{rank}.npz") as file:
            chosen = [file[key] for key in file.files if key.startswith("r.0.")]
        rows += sum(int((ids[ids >= 0] // local != rank).sum()) for ids in chosen)
    return rows


def closed_form(layout: str, out: Path) -> dict[str, dict[str, float]]:
    """Bytes by axis and collective."""
    whole = params() * WORD
    all_reduced = 2 * HALF
    experts_out = whole - params("expert") * WORD
    packed = TOKENS * (WIDTH + 2 * TOP_K) * WORD  # a token travels with its gates and experts
    if layout == "dp2":
        return {"replicas": {"all_reduce": all_reduced * whole}}
    if layout.startswith("dp2,ep2"):
        replicated = {"replicas": {"all_reduce": all_reduced * (whole - experts_out)}}
        if layout.endswith("all_gather"):  # forward gather and scatter, backward the other way round
            both = MICRO * LAYERS * (packed + HIDDEN) * HALF
            return {**replicated, "ep_etp": {"all_gather": both, "reduce_scatter": both}}
        rows = rows_exchanged(out) * WIDTH * WORD  # a rank sends its own rows, and back those of the other
        counts = MICRO * LAYERS * MOE.num_experts * WORD * HALF
        return {**replicated, "ep": {"all_to_all_v": 2 * rows, "all_to_all": counts}}  # forward and backward
    if layout.startswith("dp2,zero"):
        times = {"1": (1, 1), "2": (MICRO, 1), "3": (MICRO, MICRO)}[layout[-1]]  # gradients, weights
        return {"replicas": {"reduce_scatter": times[0] * whole * HALF, "all_gather": times[1] * whole * HALF}}
    if layout == "tp2":
        sequence = MICRO * (2 * LAYERS + 2) * HIDDEN * HALF  # attention both ways, embedding and head
        loss = MICRO * 2 * TOKENS * WORD
        experts = MICRO * LAYERS * (packed + HIDDEN) * HALF
        kept = params("vocab", "heads", "kv_heads", "ffn", "expert_ffn") * WORD
        return {
            "tp": {"reduce_scatter": sequence, "all_gather": sequence + loss},
            "etp": {"reduce_scatter": experts, "all_gather": experts},
            "replicas": {"all_reduce": all_reduced * kept},
        }
    if layout == "pp2":
        return {"pp": {"send": MICRO * HIDDEN}}
    replicated = {"replicas": {"all_reduce": all_reduced * whole}}
    if layout == "cp2,ring":  # keys, values and documents once, and twice more with their gradients
        rows = TOKENS / 2 * MODEL.num_key_value_heads * WORD
        travelling = 2 * MODEL.head_dim + 1
        return {**replicated, "cp": {"shift": MICRO * LAYERS * rows * (travelling + 2 * (2 * travelling - 1))}}
    heads = TOKENS / 2 * (2 * QUERIES + 2 * KEYS) * WORD * HALF
    documents = TOKENS / 2 * WORD
    return {**replicated, "cp": {"all_to_all": MICRO * LAYERS * 2 * heads, "all_gather": MICRO * LAYERS * documents}}


@pytest.fixture(scope="module")
def out(equiv, tmp_path_factory):
    """Traces of one step of every layout."""
    folder = tmp_path_factory.mktemp("traces")
    code, output, _ = equiv(folder, 1, LAYOUTS, "optim.warmup_steps=1")
    assert code == 0, output
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_are_those_of_the_closed_form(out, layout):
    for rank in (0, 1):
        sent = json.loads((out / layout.replace(",", "-") / f"sent-{rank}.json").read_text())
        # labels that count, statistics and norms
        control = {axis: sum(sent.pop(axis, {}).values()) for axis in ("dp", "stage", "world")}
        seen = {axis: {kind: size for kind, size in kinds.items() if size} for axis, kinds in sent.items()}
        seen = {axis: kinds for axis, kinds in seen.items() if kinds}
        wanted = closed_form(layout, out)
        assert {axis: kinds.keys() for axis, kinds in seen.items()} == {axis: k.keys() for axis, k in wanted.items()}
        for axis, kinds in wanted.items():
            assert seen[axis] == pytest.approx(kinds, rel=0.01), f"{axis} of rank {rank}"
        assert sum(control.values()) < 2000
