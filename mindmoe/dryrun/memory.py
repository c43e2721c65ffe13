"""What one rank of this program holds at its fullest, before it is built (dry).

Weights, master copies, moments and gradients are counted from the table of parameters; they are exact. What the layers
keep is an estimate: the large tensors of each op, run op by op on the CPU.
"""

from dataclasses import dataclass, fields
from math import prod

from mindmoe.config import RunConfig
from mindmoe.dryrun.program import StepProgram
from mindmoe.pipeline.split import Piece

_FP32 = 4
PROCESS = 0.45 * 2**30  # [bytes] Python, MindSpore and what they load
_GATHERED = 6.0  # copies of a unit's weights besides itself: gathered, sliced, its gradient, and that spread again
_REFERENCE = 2.5  # plain ops keep so much more than the fused ones


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """Bytes of one rank.

    Attributes:
        parameters: trainable elements that this rank holds.
        weights: what the model computes with; under ZeRO 3 this rank's parts.
        masters: this rank's parts under ZeRO 1 and 2.
        moments: of what this rank updates.
        gradients: at their fullest: of one micro-batch and their sum.
        gathered: weights that are whole for the time of their use, under ZeRO 3.
        activations: what the fullest piece keeps of one micro-batch, and the inputs of those in flight.
        process: Python and MindSpore.
    """

    parameters: int
    weights: float
    masters: float
    moments: float
    gradients: float
    gathered: float
    activations: float
    process: float = PROCESS

    @property
    def total(self) -> float:
        """All terms."""
        return sum(getattr(self, each.name) for each in fields(self) if each.name != "parameters")


@dataclass(frozen=True, slots=True)
class _Held:
    """Elements: held, updated, those that are cut by ZeRO 1 or 2, and the largest unit's and all units' whole."""

    kept: int
    updated: int
    cut: int
    whole: int
    largest: int
    replicated: bool


def rank_memory(program: StepProgram) -> RankMemory:
    """The memory of a rank at its fullest.

    Args:
        program: of the rank.
    """
    config = program.config
    parallel, train = config.parallel, config.train
    held = [_count(program, piece) for piece in program.pieces]
    kept, updated = sum(at.kept for at in held), sum(at.updated for at in held)
    moments = 2 if config.optim.type == "adamw" else 0
    several, summed = program.num_micro_batches > 1, any(at.replicated for at in held) and parallel.zero != 3
    copies = 2.0 if several or summed else 1.0
    gathered = 0.0
    if parallel.zero == 3:
        spared = parallel.recompute == "full"
        gathered = max(at.largest * (_GATHERED + 1) + (0 if spared else at.whole) for at in held)
    activations = max(_piece_activations(program, piece) for piece in program.pieces)
    if program.mesh.pp > 1:
        flying = min(program.num_micro_batches, program.mesh.pp * parallel.chunks)
        activations += flying * _FP32 * prod(program.hidden)
    activations += train.micro_batch_size * train.seq_length * 16 * program.num_micro_batches
    return RankMemory(
        parameters=kept,
        weights=_FP32 * kept,
        masters=_FP32 * sum(at.cut for at in held),
        moments=_FP32 * moments * updated,
        gradients=_FP32 * copies * kept,
        gathered=_FP32 * gathered,
        activations=activations,
    )


def _count(program: StepProgram, piece: Piece) -> _Held:
    """Elements of a piece."""
    prefixes = ["model.embed_tokens."] if piece.first or (program.tied and piece.last) else []
    prefixes += [f"model.layers.{layer}." for layer in piece.layers]
    prefixes += ["model.norm.", "lm_head."] if piece.last else []
    kept = updated = cut = whole = largest = 0
    replicated = False
    for prefix in prefixes:
        unit = 0
        for _, at in program.held((prefix,)):
            unit += at.box.size
            kept += at.kept.size
            updated += at.part.size
            cut += at.part.size if at.zero in (1, 2) else 0
            replicated |= len(at.replicas) > 1
        whole += unit
        largest = max(largest, unit)
    return _Held(kept, updated, cut, whole, largest, replicated)


def _piece_activations(program: StepProgram, piece: Piece) -> float:
    """What a piece keeps of one micro-batch [bytes]."""
    config, mesh = program.config, program.mesh
    rows = prod(program.hidden[:2])  # tokens of this rank between blocks
    layer = layer_activations(config, program)
    redo, count = config.parallel.recompute, len(piece.layers)
    again = 0 if redo == "none" else count
    if isinstance(config.parallel.recompute_layers, int):
        again = min(again, config.parallel.recompute_layers)
    inputs = _FP32 * rows * config.model.hidden_size
    attention, ffn = layer
    kept = {"none": attention + ffn, "selective": attention + 2 * inputs, "full": inputs}[redo]
    total = again * kept + (count - again) * (attention + ffn) + attention + ffn  # one more while it is worked on
    if piece.last:
        total += 3 * _FP32 * prod(program.tokens) * config.model.vocab_size / mesh.tp
    return total


def layer_activations(config: RunConfig, program: StepProgram) -> tuple[float, float]:
    """What the attention half and the FFN half of a layer keep of one micro-batch [bytes]."""
    model, mesh, moe = config.model, program.mesh, config.moe
    tokens = prod(program.tokens)  # of this context rank
    rows, dim = tokens // mesh.tp, model.hidden_size
    heads, kv_heads = model.num_attention_heads // mesh.tp, max(1, model.num_key_value_heads // mesh.tp)
    reference = config.train.kernels == "reference"
    plain = _REFERENCE if reference else 1.0
    kept = _FP32 if reference or config.train.precision == "fp32" else _FP32 / 2  # bytes of what fused ops keep
    width = (2 * heads + 2 * kv_heads) * model.head_dim
    attention = kept * plain * tokens * width + _FP32 * ((mesh.tp > 1) * 3 * tokens * dim + rows * 4 * dim)
    if reference:
        attention += 5 * _FP32 * heads * tokens * config.train.seq_length
    if mesh.cp > 1:
        attention += 2 * _FP32 * tokens * width * mesh.cp
    dense = moe.num_shared_experts if moe is not None else 1
    ffn = kept * plain * tokens * dense * 3 * model.intermediate_size / mesh.tp
    ffn += _FP32 * ((dense > 0 and mesh.tp > 1) * 3 * tokens * dim + rows * 4 * dim)
    if moe is not None:
        spread = mesh.ep_etp > 1
        chosen = config.parallel.chosen_dispatcher
        router, static = moe.router, not spread or chosen == "all_gather"
        slots = router.slots(moe) if static else router.mean_slots(moe)
        arriving = rows * mesh.etp * slots  # rows of experts here, if the routing is even
        ffn += plain * arriving * (2 * kept * model.intermediate_size / mesh.etp + (4 * _FP32 * dim if spread else 0))
        ffn += _FP32 * rows * 6 * moe.num_experts
        if spread:
            seen = rows * (mesh.ep_etp if chosen == "all_gather" else mesh.etp)
            ffn += 4 * _FP32 * seen * (dim + 2 * router.slots(moe))
    return attention, ffn
