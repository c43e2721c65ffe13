"""What one rank of this program holds at its fullest: the planner's formula, with the layers that it has (dry)."""

from math import prod

import numpy as np

from mindmoe.plan.auto import planner_layout, workload_of
from mindmoe.plan.calls.program import StepProgram
from mindmoe.plan.memory import Memory, in_flight, memory_terms, on_cpu, pick

PROCESS = 0.45 * 2**30  # [bytes] Python, MindSpore and what they load


def held_parameters(program: StepProgram) -> int:
    """Trainable elements that a rank holds; under ZeRO 3 its parts."""
    count = 0
    for piece in program.pieces:
        names = tuple(name for name in program.specs if piece.holds(name, program.tied))
        count += sum(at.kept.size for _, at in program.held(names))
    return count


def rank_memory(program: StepProgram) -> Memory:
    """The memory of a rank at its fullest [bytes], on the CPU, where it runs op by op."""
    config, mesh, stage = program.config, program.mesh, program.stage
    architecture, layout = workload_of(config).architecture, planner_layout(config, mesh.world)
    counts = np.zeros((1, len(architecture.kinds), mesh.pp))
    for place, piece in enumerate(program.all_pieces):
        for layer in piece.layers:
            counts[0, architecture.kind_numbers[layer], place % mesh.pp] += 1
    held = in_flight(layout.schedule, mesh.pp, program.num_micro_batches, layout.chunks)
    terms = memory_terms(
        on_cpu(config.train.precision, config.train.kernels == "reference"),
        architecture,
        layout,
        counts=counts,
        held=np.array([held]) / layout.chunks,
        chunks=np.array([[layout.chunks]]) if mesh.pp > 1 else None,
        tokens=prod(program.tokens),
        imbalance=1.0,
        seq_length=config.train.seq_length,
        several=program.num_micro_batches > 1,
        communicator=0.0,
        reserved=PROCESS,
    )
    return pick(terms, layout.zero, layout.recompute, stage)
