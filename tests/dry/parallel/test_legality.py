"""Illegal layouts are refused before any process starts, with the value, the rule and the remedy."""

from pathlib import Path

import pytest

from mindmoe.config.load import load_config
from mindmoe.config.run import resolve
from mindmoe.host.errors import UserError

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "equiv.yaml"


CHOICE = "moe.router={type: expert_choice, k_max: 8}"
DMR = "moe.router={type: dmr, budget: {k_min: 2, k_max: 8}, "
PLACEBO = DMR + "variant: random_k, features: {alpha: 0, difficulty_head: false}}"
HEAD = DMR + "features: {difficulty_head: true}}"
TABLE = DMR + "difficulty: {target: table}, features: {difficulty_head: true, grad_ema: true}}"
PAIRS = DMR + "difficulty: {target: table}, features: {difficulty_head: true, bigram: true}}"
EXACT = "moe.balance.aux_over=exact"
DOMAIN = DMR + "domain: {num: 2}, features: {domain: true}}"


@pytest.mark.parametrize(
    ("words", "cards", "expected"),
    [
        (["parallel.tp=3"], 3, ["parallel.tp=3", "num_attention_heads=8"]),
        (["parallel.tp=8", "model.num_key_value_heads=2"], 8, []),
        (["parallel.ep=3"], 3, ["parallel.ep=3", "num_experts=16"]),
        (["parallel.ep=2"], 1, ["parallel.ep=2", "dp*cp=1"]),
        (["parallel.tp=2", "parallel.ep=4", "parallel.etp=1"], 2, ["ep*etp=4", "dp*cp*tp=2"]),
        (["parallel.etp=5", "parallel.ep=1"], 5, ["parallel.etp=5", "intermediate_size"]),
        (["parallel.cp=3"], 3, ["parallel.cp=3", "seq_length=64", "2*cp*tp=6"]),
        (["parallel.cp=2", "parallel.tp=8", "train.seq_length=60"], 16, ["lower parallel.tp", "2*cp*tp=32"]),
        (["parallel.cp=2", "parallel.tp=8", "parallel.cp_method=ulysses"], 16, ["parallel.cp=2", "cp_method=ring"]),
        (["parallel.pp=5"], 5, ["parallel.pp=5", "num_hidden_layers=4"]),
        (["parallel.pp=2", "parallel.split=[1,2]"], 2, ["add up", "num_hidden_layers=4"]),
        (["parallel.pp=2", "parallel.split=[4]"], 2, ["split", "pp*chunks=2"]),
        (["parallel.pp=2", "parallel.chunks=2"], 2, ["chunks=2", "interleaved"]),
        (["parallel.pp=2", "parallel.recompute=full"], 2, ["recompute=full", "always"]),
        (["parallel.pp=2", "parallel.recompute=full", "parallel.zero=3"], 4, []),
        (["parallel.zero=3", "train.mode=graph", "train.micro_batch_size=2"], 2, []),
        (["parallel.ep=2", "parallel.dispatcher=all_to_all", "train.mode=graph", "train.micro_batch_size=2"], 2, []),
        (
            ["parallel.ep=2", "parallel.dispatcher=two_hop", "train.micro_batch_size=2"],
            2,
            ["node_size=8", "parallel.ep=2"],
        ),
        (["moe.dispatch.kind=capacity", "parallel.tp=2"], 2, ["capacity_chunk=64", "capacity_chunk=32"]),
        (["parallel.dp=8"], 8, ["global_batch_size=8", "micro_batch_size"]),
        ([CHOICE], 1, []),
        ([CHOICE, "parallel.pp=2"], 2, []),
        ([CHOICE, "parallel.dp=2"], 2, ["parallel.dp=2", "expert_choice", "compete"]),
        ([CHOICE, "parallel.tp=2"], 2, ["parallel.tp=2", "expert_choice", "another router"]),
        ([CHOICE, "train.micro_batch_size=2"], 2, ["parallel.dp=2", "expert_choice"]),  # dp: auto, filled in
        ([PLACEBO, "parallel.cp=2", "parallel.pp=2"], 4, []),
        ([HEAD, "parallel.tp=2", "parallel.dp=2"], 4, []),
        ([HEAD, "parallel.pp=2"], 2, ["parallel.pp=2", "target=loss_head", "target=table", "grad_ema=true"]),
        ([TABLE, "parallel.pp=2"], 2, []),
        (
            [TABLE, "parallel.pp=2", "parallel.schedule=interleaved", "parallel.chunks=2"],
            2,
            ["chunks=2", "grad_ema", "1f1b"],
        ),
        (
            [PAIRS, "parallel.pp=2", "parallel.schedule=interleaved", "parallel.chunks=2"],
            2,
            ["chunks=2", "bigram", "1f1b"],
        ),
        ([EXACT], 1, []),
        ([EXACT, "parallel.pp=2"], 2, ["parallel.schedule=1f1b", "schedule=gpipe", "aux_over=running"]),
        ([EXACT, "parallel.pp=2", "parallel.schedule=zb_h1"], 2, ["parallel.schedule=zb_h1", "aux_over=exact"]),
        ([EXACT, "parallel.pp=2", "parallel.schedule=gpipe"], 2, []),
        (["moe.balance.aux_over=running", "parallel.pp=2"], 2, []),
        ([DOMAIN, "data.sources=[a,b,c]"], 1, ["data.sources=3", "domain.num=2"]),
        ([DOMAIN, "data.sources=[a,b]"], 1, []),
    ],
)
def test_layouts(words, cards, expected):
    if not expected:
        assert resolve(load_config(CONFIG, words), cards)
        return
    with pytest.raises(UserError) as caught:
        resolve(load_config(CONFIG, words), cards)
    assert all(word in str(caught.value) for word in expected), str(caught.value)
