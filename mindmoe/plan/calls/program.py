"""The collectives of one rank in one train step, in order, derived without building anything (dry).

The list follows from the layout, the schedule's lists and the table of parameters, as the program itself does; tests
hold it to what the program records. Whatever goes forward goes back in reverse order with each collective transposed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from mindmoe.config.run import RunConfig
from mindmoe.models.gpt_oss.parameters import ParamSpec, param_specs
from mindmoe.moe.config import BalanceConfig, MoeConfig
from mindmoe.parallel.ledger import Call
from mindmoe.parallel.mesh import Mesh
from mindmoe.parallel.sharding import Placement, buckets, zero_columns
from mindmoe.pipeline.schedule import Transfer, steps_of
from mindmoe.pipeline.split import Piece, build_pieces, holding_stages, stage_pieces
from mindmoe.plan.calls.layer import BlockCalls, Op, RankGroups, forward_only, gather, scatter, zero_gather

_STEP_SUMS = 6  # of the exchange at the end of a step, see StepResult


@dataclass(frozen=True, slots=True)
class Passes:
    """The calls of a piece for one micro-batch: its forward pass, and its backward pass after that."""

    forward: list[Call]
    backward: list[Call]


class StepProgram:
    """What one rank calls.

    Args:
        config: the run, resolved on the mesh.
        mesh: the rank grid.
        rank: which.
    """

    def __init__(self, config: RunConfig, mesh: Mesh, rank: int):
        self.mesh, self.rank = mesh, rank
        here = config.train.model_copy(update={"mode": "pynative", "device": "cpu"})
        self.config = config.model_copy(update={"train": here})
        self.on = RankGroups(mesh, rank)
        self.stage = mesh.places[rank].pp
        self.all_pieces = build_pieces(config.model, config.parallel)
        self.pieces = stage_pieces(self.all_pieces, self.stage, mesh.pp)
        self.tied = config.model.tie_word_embeddings
        balance = config.moe.balance if config.moe is not None else BalanceConfig()
        self.counts_first = balance.aux_coef > 0 and balance.aux_over == "exact"
        self.specs = param_specs(config.model, config.moe)
        self.block = BlockCalls(self.config, self.on)
        train = config.train
        self.tokens = (train.micro_batch_size, train.seq_length // mesh.cp)
        self.hidden = (self.tokens[0], self.tokens[1] // mesh.tp, config.model.hidden_size)
        self.num_micro_batches = train.global_batch_size // (mesh.dp * train.micro_batch_size)

    def calls(self) -> list[Call]:
        """The calls of a step, in order."""
        passes = [self.passes(piece) for piece in self.pieces]
        reductions = [self.reduction(piece) for piece in self.pieces]
        zero = self.config.parallel.zero
        found = self.on.of("all_reduce", "dp", (1,))  # labels that count
        found += self.pipeline(passes, reductions if zero == 2 else [[] for _ in passes])
        if zero != 2:
            found += [call for calls in reductions for call in calls]
        experts, layers = self.config.moe.num_experts if self.config.moe else 0, self.config.model.num_hidden_layers
        found += self.on.of("all_reduce", "world", (_STEP_SUMS + layers * experts + 2 * layers,))
        return found + [call for piece in self.pieces for call in self.publications(piece)]

    def passes(self, piece: Piece) -> Passes:
        """The calls of a piece."""
        parallel, config = self.config.parallel, self.config
        ops: list[Op] = []
        if piece.first:
            ops += [*self.unit(("model.embed_tokens.",)), *scatter(self.on, "tp", self.hidden)]
        again = 0
        if parallel.recompute != "none":
            again = len(piece.layers) if parallel.recompute_layers == "all" else parallel.recompute_layers
        for place, layer in enumerate(piece.layers):
            unit, block = self.unit((f"model.layers.{layer}.",)), self.block
            if place >= again:
                ops += [*unit, *block.attention, *block.ffn]
            elif parallel.recompute == "full":
                ops.append(_again([*unit, *block.attention, *block.ffn]))
            else:
                ops += [*unit, *block.attention, _again(block.ffn)]
        if piece.last:
            ops += self.unit(("model.norm.", "lm_head."))
            ops += self.unit(("model.embed_tokens.",)) if self.tied else []
            ops += gather(self.on, "tp", self.hidden)
            ops += forward_only(self.on.of("all_gather", "tp", (2, prod(self.tokens))))
        if config.moe is not None:
            ops += forward_only(self.balance(config.moe, len(piece.layers)))
        forward = [call for op in ops for call in op.forward]
        return Passes(forward, [call for op in reversed(ops) for call in op.backward])

    def balance(self, moe: MoeConfig, layers: int) -> list[Call]:
        """Sums of the counts of experts for the balancing losses: of all tokens, and of sequences that are split."""
        found = [] if self.counts_first else self.on.of("all_reduce", "stage", (layers, moe.num_experts))
        if moe.balance.seq_aux_coef > 0:
            counts = (layers, self.tokens[0], moe.num_experts)
            found += [*self.on.of("all_reduce", "tp", counts), *self.on.of("all_reduce", "cp", counts)]
        return found

    def pipeline(self, passes: Sequence[Passes], reductions: Sequence[list[Call]]) -> list[Call]:
        """The calls of a schedule: pieces compute their forward pass again in a backward pass; the last, only there.

        Where the balancing loss is of the counts of the whole batch, the last does both too, and in between the counts
        are summed once.
        """
        parallel, stages = self.config.parallel, self.mesh.pp
        steps = steps_of(parallel.schedule, stages, self.num_micro_batches, parallel.chunks, self.counts_first)
        split = stages > 1 and parallel.schedule == "zb_h1"
        found: list[Call] = []
        for step in steps[self.stage]:
            if isinstance(step, Transfer):
                sends = step.source == self.stage
                found += self.message("send" if sends else "receive", step.target if sends else step.source)
                continue
            piece, at = self.pieces[step.chunk], passes[step.chunk]
            if self.counts_first and (step.kind, step.microbatch) == ("B", 0):
                counts = (len(piece.layers), self.config.moe.num_experts if self.config.moe else 0)
                found += self.on.of("all_reduce", "stage", counts)
            if step.kind == "F":
                found += [] if piece.last and not self.counts_first else at.forward
            elif step.kind == "B" and split:
                found += [] if piece.first else at.forward + self.to_input(at)
            else:
                found += at.forward + at.backward + reductions[step.chunk]
        return found

    def to_input(self, at: Passes) -> list[Call]:
        """The backward pass towards the input alone: nothing of the gathered weights' gradients."""
        return [call for call in at.backward if call.axis != "replicas"]

    def message(self, kind: str, stage: int) -> list[Call]:
        """A message to or from another stage."""
        ranks = self.mesh.group("pp", self.rank)
        return [Call(kind, "pp", ranks, self.hidden, "Float32", ranks[stage], 4.0 * prod(self.hidden))]

    def held(self, prefixes: tuple[str, ...]) -> Iterator[tuple[ParamSpec, Placement]]:
        """Trainable parameters by the beginning of their names, and where they lie."""
        for spec in self.specs.values():
            if spec.name.startswith(prefixes) and spec.trainable:
                stages = holding_stages(self.all_pieces, self.mesh.pp, spec.name, self.tied)
                yield spec, Placement.of(spec, self.mesh, self.rank, stages, self.config.parallel.zero)

    def piece_groups(self, piece: Piece) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
        """Shapes of the boxes of a piece by the ranks that have the same, where there are several."""
        prefixes = ["model.embed_tokens."] if piece.first or (self.tied and piece.last) else []
        prefixes += [f"model.layers.{layer}." for layer in piece.layers]
        prefixes += ["model.norm.", "lm_head."] if piece.last else []
        groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for prefix in prefixes:
            for _, at in self.held((prefix,)):
                if len(at.replicas) > 1:
                    groups.setdefault(self.on.kept(at.replicas), []).append(at.box.shape)
        return groups

    def unit(self, prefixes: tuple[str, ...]) -> list[Op]:
        """The gathers of a unit's weights under ZeRO 3, one for each set of replicas."""
        groups: dict[tuple[int, ...], int] = {}
        for _, at in self.held(prefixes):
            if at.zero == 3:
                ranks = self.on.kept(at.replicas)
                groups[ranks] = groups.get(ranks, 0) + zero_columns(at.box.shape, len(ranks))
        return [op for ranks, columns in groups.items() for op in zero_gather(ranks, columns)]

    def reduction(self, piece: Piece) -> list[Call]:
        """The sums of a piece's gradients over replicas."""
        zero = self.config.parallel.zero
        if zero == 3:
            return []
        found = []
        for ranks, shapes in self.piece_groups(piece).items():
            for bucket in buckets([prod(shape) for shape in shapes]):
                if zero:
                    columns = sum(zero_columns(shapes[place], len(ranks)) for place in bucket)
                    found.append(Call("reduce_scatter", "replicas", ranks, (len(ranks), columns)))
                else:
                    found.append(Call("all_reduce", "replicas", ranks, (sum(prod(shapes[at]) for at in bucket),)))
        return found

    def publications(self, piece: Piece) -> list[Call]:
        """What brings updated parts to everybody."""
        if self.config.parallel.zero not in (1, 2):
            return []
        return [
            Call("all_gather", "replicas", ranks, (sum(zero_columns(shapes[at], len(ranks)) for at in bucket),))
            for ranks, shapes in self.piece_groups(piece).items()
            for bucket in buckets([prod(shape) for shape in shapes])
        ]


def _again(ops: Sequence[Op]) -> Op:
    """Operations that are computed again in the backward pass."""
    forward = [call for op in ops for call in op.forward]
    return Op(forward, forward + [call for op in reversed(ops) for call in op.backward])
