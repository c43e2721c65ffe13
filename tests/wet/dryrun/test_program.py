"""The program of a rank that runs with stand-ins calls what was derived without building it."""

import numpy as np
import pytest

from mindmoe.dryrun.execute import random_batch
from mindmoe.dryrun.memory import rank_memory
from mindmoe.dryrun.program import StepProgram
from mindmoe.env import Place
from mindmoe.equiv.layouts import parse_layout
from mindmoe.load import load_config
from mindmoe.parallel.collectives import host_sum
from mindmoe.parallel.ledger import recording
from mindmoe.parallel.mesh import Mesh
from mindmoe.train.setup import build_trainer

CASES = [
    ("dp2,zero1", 0, []),
    ("tp2,dp2,zero2", 2, []),
    ("tp2,dp2,zero3,selective", 1, []),
    ("dp3,zero3,full", 2, ["train.micro_batch_size=3", "train.global_batch_size=6"]),  # parts of unequal size
    ("cp2,ulysses,ep2,full", 1, []),
    ("tp2,cp2,ring", 3, []),
    ("tp2,dp2,ep2,capacity,graph", 1, []),
    ("dp4,ep4,two_hop,node_size2", 1, []),
    ("tp2,ep2,etp1", 0, ["moe.num_shared_experts=1", "moe.balance.aux_coef=0"]),
    ("pp2,tp2,zb_h1", 2, []),
    ("pp2,interleaved,chunks2", 1, []),
    ("pp2,dp2,zero3,full", 2, ["model.tie_word_embeddings=true"]),
    ("pp2,dp2,zero2,ep2", 3, []),
]


@pytest.mark.parametrize(("layout", "rank", "words"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_the_calls_of_a_rank_are_the_ones_derived(root, layout, rank, words):
    small = ["model.vocab_size=384", "moe.dispatch.capacity_chunk=8", "model.num_hidden_layers=2"]
    if "chunks" in layout:
        small[-1] = "model.num_hidden_layers=4"
    found = parse_layout(layout, load_config(root / "configs" / "equiv.yaml", [*small, *words]))
    place = Place(rank=rank, world=found.world, local_world=1)
    program = StepProgram(found.config, Mesh.build(found.config.parallel, found.world), rank)
    config = program.config
    trainer = build_trainer(config, place, stand_in=True)
    with recording() as calls:
        host_sum(np.ones(1), trainer.groups["dp"])
        batches = [random_batch(config, seed) for seed in range(program.num_micro_batches)]
        result = trainer.step.run(0, batches, float(config.train.global_batch_size * 64), 0.1, False)
    assert result.finite
    assert calls == program.calls()
    entries = [entry for net in trainer.nets for entry in net.entries if entry.placement.spec.trainable]
    assert sum(entry.param.size for entry in entries) == rank_memory(program).parameters
