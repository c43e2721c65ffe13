"""A layout: every choice the planner makes for a run, with the rules that make it legal.

Field names are the names of the config keys: `parallel.<field>`, except `micro_batch_size`, which is
`train.micro_batch_size`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mindmoe.pipeline.schedule import ScheduleName
from mindmoe.planner.architecture import Architecture

Recompute = Literal["none", "selective", "ffn", "full"]
Dispatcher = Literal["all_to_all", "two_hop", "all_gather"]
Split = Literal["balanced", "even"]
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "ffn", "full")
ZEROS = (0, 1, 2, 3)
DISPATCHERS: tuple[Dispatcher, ...] = ("all_to_all", "two_hop", "all_gather")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a run is laid over the cards.

    Attributes:
        dp, tp, pp, ep, cp: degrees of the mesh. Ranks are numbered tp, cp, dp, pp from the inside out; the experts
            of one layer are spread over `ep` groups of `etp` neighbouring ranks inside dp x cp x tp.
        etp: tensor degree of an expert, 1 (experts whole, tensor ranks count as expert ranks) or tp.
        zero: what is sharded over the replicas: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too
            (gathered for each use of each micro-batch).
        recompute: `none`; `selective` redoes norms, activation functions and permutations in the backward pass; `ffn`
            redoes the whole FFN too, with its exchange, and keeps the attention; `full` keeps each layer's input only.
        schedule, chunks: pipeline schedule and pieces of the network on each stage.
        dispatcher: how tokens reach experts: one all-to-all; two hops that send a token once to each node; or an
            all-gather of all tokens and a reduce-scatter of the results.
        micro_batch_size: sequences of one micro-batch on one data-parallel rank.
        split: `balanced` gives the last stage fewer layers because of the LM head, `even` gives all the same.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    cp: int = 1
    etp: int = 1
    zero: int = 1
    recompute: Recompute = "none"
    schedule: ScheduleName = "1f1b"
    chunks: int = 1
    dispatcher: Dispatcher = "all_to_all"
    micro_batch_size: int = 1
    split: Split = "balanced"

    @property
    def cards(self) -> int:
        """Number of ranks."""
        return self.dp * self.tp * self.pp * self.cp

    @property
    def replicas(self) -> int:
        """Ranks that hold the same dense weights: dp x cp."""
        return self.dp * self.cp

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same expert weights."""
        return self.dp * self.cp * self.tp // (self.ep * self.etp)

    def microbatches(self, global_batch_size: int) -> int:
        """Micro-batches of one step on each data-parallel rank."""
        return global_batch_size // (self.dp * self.micro_batch_size)

    def describe(self) -> str:
        """The degrees on one line."""
        parts = [f"{name}{getattr(self, name)}" for name in ("dp", "tp", "pp", "ep", "cp") if getattr(self, name) > 1]
        if self.tp > 1:
            parts.append(f"etp{self.etp}")
        return " ".join(parts) or "1 card"


CONFIG_RECOMPUTE: Mapping[Recompute, str] = {"none": "none", "ffn": "selective", "full": "full"}
"""What mindmoe's config calls a policy; the others it does not have."""


def runs_here(layout: Layout, tied: bool) -> NDArray[np.bool_]:
    """Which (ZeRO stage, recomputation policy) of a layout mindmoe can train.

    Its pipeline stages compute their forward pass again anyway, so a policy is of use there under ZeRO 3 alone, where
    it frees gathered weights.
    """
    allowed = np.array([[recompute in CONFIG_RECOMPUTE for recompute in RECOMPUTES] for _ in ZEROS])
    if layout.pp > 1:
        again = np.array([recompute != "none" for recompute in RECOMPUTES])
        allowed &= ~again[None] | (np.array(ZEROS) == 3)[:, None]
        if layout.schedule == "zb_h1":
            allowed &= ~again[None]
        if tied:
            allowed[ZEROS.index(2)] = False
    return allowed


def mesh_problem(architecture: Architecture, layout: Layout, seq_length: int) -> str | None:
    """Why the degrees do not fit the network, None if they do. The wording is the key of the count of rejections."""
    tp, ep, etp = layout.tp, layout.ep, layout.etp
    layer = architecture.layers[-1]
    if architecture.kv_heads % tp:
        return "tp must divide the number of key-value heads"
    if architecture.vocab_size % tp:
        return "tp must divide vocab_size"
    if layer.dense_ffn % tp:
        return "tp must divide the width of the dense FFN"
    if seq_length % (layout.cp * 2 * tp if layout.cp > 1 else tp):
        return "tp x cp must divide seq_length (twice where cp > 1, for an even causal load)"
    if layout.pp * layout.chunks > len(architecture.layers):
        return "pp x chunks must not exceed the number of layers"
    if not architecture.experts:
        return "a dense model has ep = etp = 1" if ep > 1 or etp > 1 else None
    if architecture.experts % ep:
        return "ep must divide the number of experts"
    if etp not in (1, tp):
        return "etp must be 1 or tp"
    if (layout.dp * layout.cp * tp) % (ep * etp):
        return "ep x etp must divide dp x cp x tp"
    if layer.expert_ffn % etp:
        return "etp must divide the expert FFN width"
    return None


def batch_problem(layout: Layout, global_batch_size: int) -> str | None:
    """Why the batch does not fit the layout, None if it does."""
    if global_batch_size % (layout.dp * layout.micro_batch_size):
        return "dp x micro_batch_size must divide global_batch_size"
    microbatches = layout.microbatches(global_batch_size)
    if layout.schedule == "interleaved" and microbatches % layout.pp:
        return "an interleaved schedule needs a multiple of pp micro-batches"
    if layout.pp > 1 and microbatches < layout.pp:
        return "fewer micro-batches than pipeline stages"
    return None
