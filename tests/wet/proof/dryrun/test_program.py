"""The program of a rank that runs with stand-ins calls what was derived without building it."""

from pathlib import Path

import pytest
from mindspore import ops

from mindmoe.config.load import load_config
from mindmoe.equiv.layouts import parse_layout
from mindmoe.host.env import Place
from mindmoe.parallel.ledger import Call, recording
from mindmoe.parallel.mesh import Mesh
from mindmoe.parallel.stand_in import StandIn
from mindmoe.plan.calls.program import StepProgram
from mindmoe.plan.rank_memory import held_parameters
from mindmoe.proof.dryrun.execute import random_batch
from mindmoe.train.setup import build_trainer

CASES = [
    ("dp2,zero1", 0, []),
    ("tp2,dp2,zero2", 2, []),
    ("tp2,dp2,zero3,selective", 1, []),
    ("dp3,zero3,full", 2, ["train.micro_batch_size=3", "train.global_batch_size=6"]),  # parts of unequal size
    ("cp2,ulysses,ep2,full", 1, []),
    ("tp2,cp2,ring", 3, []),
    ("tp2,dp2,ep2,capacity", 1, []),
    ("dp4,ep4,two_hop,node_size2", 1, []),
    ("tp2,ep2,etp1", 0, ["moe.num_shared_experts=1", "moe.balance.aux_coef=0"]),
    ("tp2,cp2,ring", 0, ["moe.balance.seq_aux_coef=0.01"]),
    ("pp2,tp2,zb_h1", 2, []),
    ("pp2,interleaved,chunks2", 1, []),
    ("pp2,dp2,zero3,full", 2, ["model.tie_word_embeddings=true"]),
    ("pp2,dp2,zero2,ep2", 3, []),
    ("dp2,zero3,full", 1, ["moe.balance.aux_over=exact", "train.micro_batch_size=2"]),
    ("pp2,dp2,zero2,gpipe", 0, ["moe.balance.aux_over=exact"]),
    ("pp2,dp2,ep2,gpipe", 3, ["moe.balance.aux_over=exact"]),
    ("pp2,tp2,zb_h1", 3, ["moe.balance.aux_over=running"]),
]


def run_step(root: Path, layout: str, rank: int, words: list[str]) -> tuple[StepProgram, list[Call], int]:
    """A step of one rank: what was derived, its calls, and its parameters."""
    layers = 4 if "chunks" in layout else 2
    small = ["model.vocab_size=384", "moe.dispatch.capacity_chunk=8", f"model.num_hidden_layers={layers}"]
    found = parse_layout(layout, load_config(root / "configs" / "equiv.yaml", [*small, *words]))
    program = StepProgram(found.config, Mesh.build(found.config.parallel, found.world), rank)
    config = program.config
    trainer = build_trainer(config, Place(rank=rank, world=found.world, local_world=1), stand_in=True)
    with recording() as calls:
        batches = [random_batch(config, seed) for seed in range(program.num_micro_batches)]
        result = trainer.step.run(0, batches, trainer.step.count_valid(batches), 0.1, False)
    assert result.finite
    tensors = [tensor for net in trainer.nets for tensor in net.tensors if tensor.spec.trainable]
    return program, calls, sum(tensor.param.size for tensor in tensors)


@pytest.mark.parametrize(("layout", "rank", "words"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_the_calls_of_a_rank_are_the_ones_derived(root, layout, rank, words):
    program, calls, parameters = run_step(root, layout, rank, words)
    assert calls == program.calls()
    assert parameters == held_parameters(program)


def test_a_rank_whose_experts_get_no_token_calls_the_same(root, monkeypatch):
    """Its weights are gathered and their gradients reduced all the same, or the other ranks would wait."""
    monkeypatch.setattr(  # equal rows of every gathered router: all tokens go to the first experts
        StandIn, "all_gather", lambda self, x: ops.broadcast_to(x.expand_dims(0), (self.size, *x.shape))
    )
    words = ["model.num_hidden_layers=2", "train.micro_batch_size=16", "train.global_batch_size=16"]
    program, calls, _ = run_step(root, "dp16,ep8,zero3", 7, words)
    assert calls == program.calls()
