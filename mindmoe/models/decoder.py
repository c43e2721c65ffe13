"""The model, or a piece of it: embedding, layers, final norm and vocabulary projection."""

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindmoe.models.gpt_oss.block import Block
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.models.gpt_oss.parameters import param_specs, router_specs
from mindmoe.models.reads import reads_of
from mindmoe.moe.config import MoeConfig
from mindmoe.moe.layer import STATISTICS, RouterStats
from mindmoe.moe.router.base import Named
from mindmoe.moe.router.scores import named
from mindmoe.ops.contract import OpSet
from mindmoe.ops.zeros import zeros_like
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.groups import Groups
from mindmoe.parallel.mesh import Mesh
from mindmoe.parallel.recompute import Recomputed
from mindmoe.parallel.sharding import Placement
from mindmoe.parallel.tensor import (
    build_own_part,
    build_vocab_cross_entropy,
    build_vocab_embedding,
    build_vocab_measure,
)
from mindmoe.parallel.unit import ShardedTensor, Unit
from mindmoe.pipeline.split import Piece, build_pieces, holding_stages, whole


def stack_layers(names: tuple[str, ...], collected: tuple[RouterStats, ...]) -> Named:
    """What each layer tells, in the order of `names` -> each by its name, stacked over layers."""
    stacked = {}
    for index in range(len(names)):
        parts: tuple[Tensor, ...] = ()
        for stats in collected:
            parts = (*parts, stats[index])
        stacked[names[index]] = ops.stack(parts)
    return stacked


class CausalLM(nn.Cell):
    """A gpt-oss decoder, or its dense twin where `moe` is None; on a pipeline stage, one piece of it.

    Calling it gives the training objective's parts; `logits` gives next-token logits of a model in one piece.

    Args:
        model: sizes.
        moe: routing, None for a dense model.
        kernels: the ops.
        groups: this rank's groups, by default those of a process alone.
        parallel: layout of the run.
        piece: which layers, by default all.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        model: ModelConfig,
        moe: MoeConfig | None,
        kernels: OpSet,
        *,
        groups: Groups | None = None,
        parallel: ParallelConfig | None = None,
        piece: Piece | None = None,
        seed: int = 0,
    ):
        super().__init__(auto_prefix=False)
        groups = groups or Groups(Mesh(), 0, "cpu")
        parallel = parallel or ParallelConfig()
        piece = piece or whole(model)
        self.first, self.last, self.is_moe = piece.first, piece.last, moe is not None
        self.rms_norm, self.linear_out = kernels.rms_norm, kernels.linear_out
        self.longest = kernels.shape.seq_length
        self.kv_heads, self.head_dim, self.cache_dtype = model.num_key_value_heads, model.head_dim, kernels.cache_dtype
        self.embedding = build_vocab_embedding(kernels.embedding, groups["tp"])
        self.cross_entropy = build_vocab_cross_entropy(kernels.cross_entropy, kernels.cross_entropy_part, groups["tp"])
        specs = param_specs(model, moe)
        # The pieces of all stages, not this one's alone: a tied table lies on two of them, and its gradient is theirs.
        pieces = build_pieces(model, parallel)

        def unit(wanted: tuple[str, ...]) -> Unit:  # names, or what ends in a dot and begins them
            starts = tuple(start for start in wanted if start.endswith("."))
            placed = []
            for spec in (spec for name, spec in specs.items() if name in wanted or name.startswith(starts)):
                stages = holding_stages(pieces, parallel.pp, spec.name, model.tie_word_embeddings)
                placed.append((spec, Placement.of(spec, groups.mesh, groups.rank, stages, parallel.zero)))
            return Unit(placed, groups, seed, model.initializer_range)

        # The last piece projects onto the vocabulary with the embedding's table where they are tied.
        tied = model.tie_word_embeddings
        self.embed: Any = unit(("model.embed_tokens.",)) if piece.first or (tied and piece.last) else None
        # What the router adds. A name in what layers tell serves one purpose, or one value would overwrite the other.
        added = router_specs(model, moe)
        self.shared_names = tuple(weight.name for weight in added.shared)
        self.shared: Any = unit(tuple(f"model.{name}" for name in self.shared_names)) if added.shared else None
        routing = None if moe is None else moe.router.build(moe)
        self.signals, self.learn = tuple(added.signals), None if routing is None else routing.learn
        self.told = () if routing is None else (*self.signals, *routing.figures)
        taken = {*STATISTICS, "measured", "mask", "cross_entropy", "aux", "seq_aux"}
        assert not {*self.told, *added.sums} & taken, "a name that is taken"
        self.reads: tuple[str, ...] = () if moe is None else moe.router.token_reads
        self.prepare: Any = None if routing is None else routing.prepare
        self.prepared = () if routing is None else routing.features
        # Under sequence parallelism a rank routes only the tokens whose hidden states it holds, S/tp of each row.
        self.own_part = build_own_part(groups["tp"])
        # What a router learns from after the fact needs logits, which only the last piece has.
        self.measure: Any = None
        if routing is not None and routing.measure is not None and piece.last:
            self.measure = build_vocab_measure(*routing.measure, self.linear_out, groups["tp"])
        self.learned_sums: tuple[str, ...] = ()
        if routing is not None and self.measure is not None:
            self.learned_sums = tuple(name for name in added.sums if name != routing.sink)
        # A sum that a router takes from gradients is the gradient of a parameter of zeros: automatic differentiation
        # adds it up where the embedding's output passes by. No optimizer updates it, for it is in no unit.
        self.sink: Any = None
        self.sink_sum = ""
        if routing is not None and routing.tap is not None and routing.sink is not None and piece.first:
            self.sink = ms.Parameter(ops.zeros(added.sums[routing.sink], ms.float32), name="tap_sink")
            self.tap, self.sink_sum = routing.tap, routing.sink
        self.layers, self.units = nn.CellList(auto_prefix=False), nn.CellList(auto_prefix=False)
        for layer in piece.layers:
            # A block addresses weights by their place in the unit's tuple, so both follow the order of the specs.
            prefix = f"model.layers.{layer}."
            names = [name.removeprefix(prefix) for name in specs if name.startswith(prefix)]
            slots = {name: place for place, name in enumerate(names)}
            self.layers.append(Block(model, moe, routing, self.told, layer, kernels, groups, slots, parallel))
            self.units.append(unit((prefix,)))
        self.head: Any = unit(("model.norm.", "lm_head.")) if piece.last else None
        self.tied = tied
        self.recomputes = parallel.recompute
        self.recomputed = [self.recomputed_layer(index) for index in range(piece.recomputed(parallel))]

    @property
    def tensors(self) -> list[ShardedTensor]:
        """The parameters of this piece on this rank, in the order of the forward pass."""
        units = (self.embed, self.shared, *self.units, self.head)
        return [tensor for unit in units if unit is not None for tensor in unit.tensors]

    def through(self, x: Tensor, segment_ids: Tensor, features: tuple[Tensor, ...] = ()) -> tuple[Tensor, Named]:
        """x (B, S/tp, D) -> the same after this piece's layers, and what they tell, by name, stacked over them.

        `features`: what routers read of the tokens, see `features()`.
        """
        collected: tuple[RouterStats | tuple[()], ...] = ()
        for index in range(len(self.layers)):
            layer, unit = self.layers[index], self.units[index]
            # Kept whole: the weights are gathered (ZeRO 3) outside the block, and the backward pass keeps them.
            if index >= len(self.recomputed):
                x, stats = layer(x, segment_ids, *unit.whole(unit.params), *features)
            # The block gets what this rank keeps and gathers it inside, so the backward pass gathers again too.
            elif self.recomputes == "full":
                x, stats = self.recomputed[index](x, segment_ids, *unit.params, *features)
            # Selective: the attention half keeps what it made, only the FFN half is computed again.
            else:
                weights = (*unit.whole(unit.params), *features)
                x, stats = self.recomputed[index](layer.attend(x, segment_ids, *weights), *weights)
            collected = (*collected, stats)
        return x, stack_layers((*STATISTICS, *self.told), collected) if self.is_moe else {}

    def recomputed_layer(self, index: int) -> Recomputed:
        """A layer, or its FFN half, that is computed again in its backward pass; of a layer the gathers are too."""
        layer, unit = self.layers[index], self.units[index]

        def gathered(x: Tensor, segment_ids: Tensor, *given: Tensor) -> Any:
            held = len(unit.params)
            return layer(x, segment_ids, *unit.whole(given[:held]), *given[held:])

        return Recomputed(gathered if self.recomputes == "full" else layer.ffn)

    def hidden(self, input_ids: Tensor, segment_ids: Tensor) -> tuple[Tensor, Named]:
        """input_ids (B, S) -> hidden states (B, S/tp, D) before the final norm, and stacked statistics."""
        x = self.embedding(input_ids, *self.embed.whole(self.embed.params))
        return self.through(x, segment_ids, self.features(reads_of(self.reads, input_ids, segment_ids)))

    def features(self, read: Named) -> tuple[Tensor, ...]:
        """What the router of every layer reads, each (T, ..) of this rank's tokens.

        `read`: what a batch carries for it, each (B, S) int32 by name.
        """
        if not self.reads:
            return ()
        own = self.own_reads(read)
        if self.prepare is not None:
            own = self.prepare(own, self.shared_state())
        found: tuple[Tensor, ...] = ()
        for name in self.prepared:
            # Without `prepare` a feature is what was read, (B, S/tp) -> (T).
            found = (*found, own[name].reshape(-1) if self.prepare is None else own[name])
        return found

    def own_reads(self, read: Named) -> Named:
        """Of the tokens whose hidden states this rank holds."""
        own = {}
        for name in self.reads:
            own[name] = self.own_part(read[name])
        return own

    def shared_state(self) -> Named:
        """State of the router that all layers share, by name."""
        return named(self.shared_names, self.shared.params) if self.shared is not None else {}

    def construct(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        token_weight: Tensor | None = None,
        *read: Tensor,
    ) -> Any:
        """What this piece makes of what the one before made; of token ids alone, the logits of a whole model.

        Args:
            x: input_ids (B, S) int32 for the first piece, else hidden states (B, S/tp, D).
            labels: (B, S) int32; it, loss_mask and segment_ids matter where they are used.
            loss_mask: (B, S).
            segment_ids: (B, S) int32.
            token_weight: scalar that the loss of a token is multiplied with, needed where gradients are tapped.
            read: (B, S) int32 of each name in `reads`.

        Returns:
            Summed cross-entropy over unmasked tokens [nats] from the last piece, else hidden states; and what the
            layers tell, by name, with what the last piece measured of each token (T), where it does.
        """
        if labels is None or segment_ids is None:
            return self.logits(x)
        by_name = named(self.reads, read)
        features = self.features(by_name)
        if self.first:
            x = self.embedding(x, *self.embed.whole(self.embed.params))
            if self.sink is not None:
                x = self.tap(x, self.own_reads(by_name), self.shared_state(), token_weight, self.sink)
        x, stats = self.through(x, segment_ids, features)
        if not self.last:
            return x, stats
        # The end of the network: final norm, what the router measures, and the loss.
        norm, head = self.ends()
        x = self.rms_norm(x, norm)
        if self.measure is not None:
            stats["measured"] = self.measure(x, head, labels)
        return self.cross_entropy(x, head, labels, loss_mask), stats

    def ends(self) -> tuple[Tensor, Tensor]:
        """The final norm (D) and the vocabulary projection (V/tp, D)."""
        weights = self.head.whole(self.head.params)
        # Under ZeRO 3 the table is gathered here again: its first use lies at the other end of the network.
        if self.tied:
            return weights[0], self.embed.whole(self.embed.params)[0]
        return weights[0], weights[1]

    def logits(self, input_ids: Tensor, segment_ids: Tensor | None = None) -> Tensor:
        """input_ids (B, S) int32 -> (B, S, V) fp32; by default a row is one document."""
        if input_ids.shape[1] > self.longest:
            raise ValueError(f"{input_ids.shape[1]} tokens: this model was built for at most {self.longest}")
        if segment_ids is None:
            segment_ids = zeros_like(input_ids)
        x, _ = self.hidden(input_ids, segment_ids)
        norm, head = self.ends()
        return self.linear_out(self.rms_norm(x, norm), head)

    def cache(self, batch: int, capacity: int) -> ms.ParameterTuple:
        """An empty cache for `extend` of at most `capacity` tokens: keys, then values of each layer (B, KV, C, hd)."""
        shape = (batch, self.kv_heads, capacity, self.head_dim)
        return ms.ParameterTuple(
            ms.Parameter(ops.zeros(shape, self.cache_dtype), name=f"{kind}.{layer}", requires_grad=False)
            # All keys come before all values: `extend` finds layer i's at i and at i + number of layers.
            for kind in ("keys", "values")
            for layer in range(len(self.layers))
        )

    def extend(
        self, input_ids: Tensor, start: Tensor, last: Tensor, before: Tensor, cache: ms.ParameterTuple
    ) -> Tensor:
        """Logits (B, V) of the token after input_ids[:, last], the tokens from position start on.

        Args:
            input_ids: (B, N) int32. Tokens after `last` only fill up; later calls write over what they left.
            start: (1) int32, tokens before these, all of which the cache has seen.
            last: (1) int32.
            before: (B, 1) int32 tokens before the first ones, -1 where there are none.
            cache: of `cache()`; extended in place.
        """
        x = self.embedding(input_ids, *self.embed.whole(self.embed.params))
        features = self.features(reads_of(self.reads, input_ids, None, start, before))
        for i, layer in enumerate(self.layers):
            unit = self.units[i]
            x = layer.extend(x, start, cache[i], cache[len(self.layers) + i], *unit.whole(unit.params), *features)
        norm, head = self.ends()
        # One position is projected, not all N. It is a tensor, so one compiled graph serves every length of a prompt.
        return self.linear_out(self.rms_norm(ops.gather(x, last, 1), norm), head)[:, 0]
