"""What a router is to everything else: a section of the config that is an object with four verbs.

    specs       names and shapes of its weights, of its state, and of what it tells of a step
    reads       what it wants to know of the tokens, by name
    build       the route from logits to experts, bound to the sizes of a model
    after_step  how its state moves between steps

Verbs other than `build` need no MindSpore, and `build` imports it itself: a router can be checked and counted where no
device is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from mindmoe.config.schema import Scale, Section
from mindmoe.parallel.config import ParallelConfig

if TYPE_CHECKING:
    from mindspore import Tensor

    from mindmoe.moe.config import MoeConfig

Score = Literal["softmax_after_topk", "softmax", "sigmoid"]
Read = Literal["hidden", "token_id", "position", "previous", "domain"]
"""`hidden` (T, D) fp32, what the layer's router sees of the tokens; of each token (T) int32 its id, its place in the
row, the token before it in its document (-1 where there is none), and the number of the source that its row comes from
(from 1; 0 where it is unknown)."""

Named = dict[str, "Tensor"]
"""Tensors by name. A dict, for it is the one record through which a compiled function keeps gradients."""

Route = Callable[["Tensor", Named, Named], Named]
"""route(logits, weights, read) -> assignment, pure; see `Routing`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A weight or a piece of state of a router, which every rank of a stage holds whole.

    Attributes:
        name: below `router.` of a layer, or below `model.` where all layers share it.
        shape: shape.
        init: `zeros`, or `normal` as the matrices of the model.
        trainable: False for state that `after_step` moves.
    """

    name: str
    shape: tuple[int, ...]
    init: Literal["zeros", "normal"] = "zeros"
    trainable: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterSpecs:
    """What a router adds to a model.

    Attributes:
        layer: weights and state of each layer.
        shared: of all layers together.
        signals: width of each figure that `route` tells of a layer, a sum over tokens; it is summed over the global
            batch, by name.
        sums: shape of each sum that all layers have in common.
    """

    layer: tuple[Weight, ...] = ()
    shared: tuple[Weight, ...] = ()
    signals: Mapping[str, int] = field(default_factory=dict)
    sums: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterStep:
    """What a step tells of a layer, or of what all layers share: sums over the global batch.

    Attributes:
        counts: (E) assignments of the layer; empty for what is shared.
        signals: the layer's figures by name.
        sums: the common ones by name.
        done: steps completed, this one included.
    """

    counts: np.ndarray
    signals: Mapping[str, np.ndarray]
    sums: Mapping[str, np.ndarray]
    done: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """What a router computes; the functions are pure and may be compiled.

    Most routers have a `route` alone. The others are for one that learns from more than the gates' gradient.

    Attributes:
        route: of a layer. Its arguments are logits (T, E) fp32; the router's weights by name, with `selection_bias`
            (E) where the balance has one; and what it reads, by name. It returns by name: `gates` (T, K), the weight of
            each chosen expert, 0 in unused slots; `ids` (T, K) int32, E in unused slots; `probs` (T, E), the scores
            normalised over all experts, which the balancing losses are about; its signals; and where they differ,
            `kept` (T, K), the ids without slots that it gave up again, and `logits`, those that it decided from.
        features: names of what `prepare` makes, each (T, ..), or without it of the token's reads, each (T).
        prepare: reads (B, S) of this rank's tokens and shared state -> what every layer reads, once a micro-batch.
        figures: more that `route` returns, of each token (T), for `learn`.
        measure: logits over a part of the vocabulary and labels -> (F, T), and those of all parts (P, F, T) -> (T):
            a figure of each token after the fact, for `learn`.
        learn: a loss of the router's own and its sums, see `Learn`.
        tap: output of the embedding, reads, shared state, the factor of a token's loss, and a sink of zeros -> the
            first as it is; the gradient of the sink is the sum that `sink` names.
        sink: one of the specs' sums.
    """

    route: Route
    features: tuple[str, ...] = ()
    prepare: Callable[[Named, Named], Named] | None = None
    figures: tuple[str, ...] = ()
    measure: tuple[Callable[..., Any], Callable[..., Any]] | None = None
    learn: "Learn | None" = None
    tap: Callable[..., Any] | None = None
    sink: str | None = None


Learn = Callable[[Named, Named, Named, Callable[["Tensor"], "Tensor"]], tuple["Tensor", Named]]
"""learn(told, read, shared, reduce) -> its loss of this rank's tokens, as a share of the loss of the batch, and sums.

`told` holds the router's figures (L, T), `mask` (T), 1 where a label counts, and `measured` (T) on the last piece of
the model, where all sums but that of the sink are returned; `reduce` sums over all ranks that hold tokens of the
micro-batch.
"""


class Router(Section):
    """What all routers share: how logits become gates.

    `score`: `softmax_after_topk` (gpt-oss: softmax over the chosen logits), `softmax` (over all experts, then top-k),
    `sigmoid` (DeepSeek-V3). `tau` divides the logits. `norm_topk` divides the gates of a token by their sum.
    """

    causal: ClassVar[bool] = True  # whether a token's routing depends on itself and earlier tokens alone
    ranked: ClassVar[bool] = True  # whether a token's slots go from its best expert down

    score: Score = "softmax_after_topk"
    tau: Scale = 1.0
    norm_topk: bool = True  # without effect on a softmax over the chosen: its sum is 1
    route_scale: Scale = 1.0  # factor of all gates
    linear_bias: bool = True  # of the projection, as gpt-oss has it

    def specs(self, moe: "MoeConfig", hidden_size: int, vocab_size: int) -> RouterSpecs:
        """What it adds to the model besides the projection from hidden states to logits: nothing."""
        return RouterSpecs()

    def reads(self) -> tuple[Read, ...]:
        """What it wants to know of the tokens besides their logits: nothing, and no batch carries it then."""
        return ()

    @property
    def token_reads(self) -> tuple[Read, ...]:
        """What a batch carries for it: its reads without hidden states."""
        return tuple(name for name in self.reads() if name != "hidden")

    def build(self, moe: "MoeConfig") -> Routing:
        """What it computes."""
        raise NotImplementedError

    def after_step(
        self, moe: "MoeConfig", state: Mapping[str, np.ndarray], step: RouterStep
    ) -> Mapping[str, np.ndarray]:
        """What has become of some state after a step, which every rank that holds it computes alike.

        Args:
            moe: the section that this one is part of.
            state: of a layer by name, or all that the layers share.
            step: what the step told.
        """
        return {}

    def slots(self, moe: "MoeConfig") -> int:
        """Experts that a token may have at most, K of the shapes."""
        return moe.num_experts_per_tok

    def mean_slots(self, moe: "MoeConfig") -> float:
        """The most experts of a token on average over a micro-batch; as many rows may be computed."""
        return self.slots(moe)

    def mean_range(self, moe: "MoeConfig") -> tuple[float, float]:
        """Least and most experts of a token on average over many tokens, once its state has settled."""
        return self.mean_slots(moe), self.mean_slots(moe)

    @property
    def expert_groups(self) -> int:
        """Groups of experts that it tells apart; with more than one the numbers of experts mean something to it."""
        return 1

    @property
    def group_share(self) -> float:
        """The share of the groups of experts that a token may choose from."""
        return 1.0

    @property
    def hidden_domains(self) -> float:
        """The share of training rows whose domain it shall not be told."""
        return 0.0

    @property
    def unbounded(self) -> "Router":
        """The router for inference: no bound on the slots of a batch, in which later tokens would take part."""
        return self

    def problems(self, moe: "MoeConfig") -> Iterator[str]:
        """What does not fit the section that this one is part of."""
        yield from ()

    def layout_problems(self, parallel: ParallelConfig) -> Iterator[str]:
        """Layouts under which it would not compute what it computes on one process."""
        # These axes spread tokens over ranks, and each rank would let only its own compete.
        for axis in ("dp", "tp", "cp"):
            if not self.causal and getattr(parallel, axis) not in (1, "auto"):
                yield (
                    f"parallel.{axis}={getattr(parallel, axis)} must be 1 with moe.router.type={self.tag}, whose "
                    f"tokens compete within a rank: set parallel.{axis}=1 or take another router"
                )

    def data_problems(self, num_sources: int) -> Iterator[str]:
        """Data that it cannot tell apart."""
        yield from ()

    @property
    def tag(self) -> str:
        """The `type` of its section."""
        return str(self.type)  # type: ignore[attr-defined]
