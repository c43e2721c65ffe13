"""Which layouts a run can have: one table of rules (dry).

A config is checked against it when it is loaded and when its cards are known; the planner asks it of every layout that
it looks at. A rule's parameters name what it reads: sections of the run (`model`, `moe`, `train`), choices of the
layout by their config keys (`tp`, `zero`, `micro_batch_size`, ...; `etp` as a number), and `cards`. It is asked once
all of these are known. What is legal but slow is no matter of this table: the planner's times tell.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

from mindmoe.config.schema import INT32_MAX
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.moe.config import MoeConfig
from mindmoe.parallel.config import ParallelConfig
from mindmoe.train.config import TrainConfig


# no slots: `reads` is kept in the instance's dictionary
@dataclass(frozen=True)
class Rule:
    """What a layout must respect.

    Attributes:
        says: the rule in words, under which a plan counts what it refuses.
        problem: values, rule and remedy in one sentence, None where the rule is kept.
    """

    says: str
    problem: Callable[..., str | None]

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return tuple(signature(self.problem).parameters)

    def ask(self, facts: Mapping[str, Any]) -> str | None:
        """The problem of a layout that is known so far as this rule reads."""
        return self.problem(*[facts[name] for name in self.reads])


def facts(sections: Mapping[str, Any], **more: int) -> dict[str, Any]:
    """What is known of a run, by the names that rules read; `dp: auto` is not known.

    Args:
        sections: valid sections of a run, by name.
        more: `cards`.
    """
    found = {name: sections[name] for name in ("model", "moe", "train") if name in sections}
    if "train" in sections:
        found["micro_batch_size"] = sections["train"].micro_batch_size
    if "parallel" in sections:
        parallel = sections["parallel"]
        found |= dict(parallel) | {"etp": parallel.expert_tp}
        # rules that read dp then wait until the cards are known
        if parallel.dp == "auto":
            del found["dp"]
    return found | more


def problems(known: Mapping[str, Any]) -> list[str]:
    """Every rule that is broken, of those that can be asked."""
    told = (rule.ask(known) for rule in RULES if known.keys() >= set(rule.reads))
    return [problem for problem in told if problem is not None]


def in_order(*groups: Collection[str]) -> list[list[Rule]]:
    """The rules that can be asked once the names of each group are known too, group by group."""
    # A planner that fixes one group of choices after the other asks each rule once, at the first level that can answer.
    levels, known, asked = [], set[str](), set[Rule]()
    for group in groups:
        known |= set(group)
        levels.append([rule for rule in RULES if known >= set(rule.reads) and rule not in asked])
        asked |= set(levels[-1])
    return levels


def refusal(rules: Sequence[Rule], known: Mapping[str, Any]) -> str | None:
    """The first of some rules that a layout breaks, in words."""
    return next((rule.says for rule in rules if rule.ask(known) is not None), None)


# The ranks and the batch.


def _cards(cards: int, tp: int, pp: int, cp: int) -> str | None:
    replica = tp * pp * cp
    if cards < 1:
        return f"cards={cards} must be at least 1: give the number of devices of the run"
    if cards % replica == 0:
        return None
    degrees = {"tp": tp, "pp": pp, "cp": cp}
    # degrees that do not even divide the cards by themselves; none if only their product does not
    culprits = [f"parallel.{axis}={degree}" for axis, degree in degrees.items() if cards % degree]
    return (
        f"cards={cards} must be a multiple of tp*pp*cp={replica} ({tp}*{pp}*{cp}): use "
        f"{-(-cards // replica) * replica} cards, or lower {' and '.join(culprits) or 'one of the degrees'}"
    )


def _data_parallel(cards: int, dp: int, tp: int, pp: int, cp: int) -> str | None:
    replica = tp * pp * cp
    # without cards, and where the replicas do not fit, `_cards` says so
    if cards < 1 or cards % replica or dp == cards // replica:
        return None
    return (
        f"cards={cards} must equal dp*tp*pp*cp={dp * replica} with parallel.dp={dp}: "
        f"set parallel.dp={cards // replica} or auto"
    )


def _batch(train: TrainConfig, micro_batch_size: int, dp: int) -> str | None:
    rows = micro_batch_size * dp
    if train.global_batch_size % rows == 0:
        return None
    # the multiple that is closest, but no batch of nothing
    nearest = max(round(train.global_batch_size / rows), 1) * rows
    return (
        f"train.global_batch_size={train.global_batch_size} must be a multiple of train.micro_batch_size * parallel.dp "
        f"= {micro_batch_size} * {dp} = {rows}: set train.global_batch_size={nearest}, or lower train.micro_batch_size"
    )


def _rows(moe: MoeConfig | None, train: TrainConfig, micro_batch_size: int) -> str | None:
    tokens = micro_batch_size * train.seq_length
    # Rows that experts compute for a token: what the router asks for, or all slots of the buffers if these are more,
    # but never more than one for each expert.
    slots = 1.0 if moe is None else float(moe.router.slots(moe))
    if moe is not None and moe.dispatch.kind == "capacity":
        slots = max(slots, min(moe.num_experts, moe.dispatch.capacity_factor * moe.num_experts_per_tok))
    if tokens > INT32_MAX or tokens * slots <= INT32_MAX:  # the tokens of a batch have a check of their own
        return None
    return (
        f"train.micro_batch_size={micro_batch_size} must be, times train.seq_length={train.seq_length} and {slots:g} "
        f"expert rows a token, at most {INT32_MAX} rows: lower train.micro_batch_size"
    )


# What an axis cuts.


def _cut(axis: str, degree: int, key: str, size: int) -> str | None:
    if size % degree == 0:
        return None
    return f"parallel.{axis}={degree} must divide {key}={size}: lower parallel.{axis}"


def _query_heads(model: ModelConfig, tp: int) -> str | None:
    return _cut("tp", tp, "model.num_attention_heads", model.num_attention_heads)


def _key_heads(model: ModelConfig, tp: int) -> str | None:
    heads = model.num_key_value_heads  # with fewer of them than ranks, neighbours share one
    if heads % tp == 0 or tp % heads == 0:
        return None
    return f"parallel.tp={tp} must divide model.num_key_value_heads={heads} or be a multiple of it: change parallel.tp"


def _vocabulary(model: ModelConfig, tp: int) -> str | None:
    return _cut("tp", tp, "model.vocab_size", model.vocab_size)


def _dense_ffn(model: ModelConfig, moe: MoeConfig | None, tp: int) -> str | None:
    # a dense model has one FFN; with experts the shared ones form one wide FFN, of width 0 if there is none
    shared = 1 if moe is None else moe.num_shared_experts
    return _cut("tp", tp, "the width of the dense FFN", shared * model.intermediate_size)


def _expert_ffn(model: ModelConfig, moe: MoeConfig | None, etp: int) -> str | None:
    return _cut("etp", etp, "model.intermediate_size", model.intermediate_size) if moe is not None else None


def _sequence(train: TrainConfig, tp: int, cp: int) -> str | None:
    parts = 2 * cp * tp if cp > 1 else tp  # a context rank has an early and a late piece, for an even causal load
    if train.seq_length % parts == 0:
        return None
    product = f"2*cp*tp={parts}" if cp > 1 else f"tp={parts}"
    axis = f"tp={tp}" if train.seq_length % tp else f"cp={cp}"  # where tp alone does not fit, no cp helps
    return (
        f"parallel.{axis} must divide train.seq_length={train.seq_length} into {product} equal parts: "
        f"lower parallel.{axis[:2]}"
    )


def _ulysses(model: ModelConfig, tp: int, cp: int, cp_method: str) -> str | None:
    # What a tensor rank has; with fewer key heads than tensor ranks it has one, which it shares.
    heads, kv_heads = model.num_attention_heads // tp, max(1, model.num_key_value_heads // tp)
    if cp == 1 or cp_method != "ulysses" or (heads % cp == 0 and (kv_heads % cp == 0 or cp % kv_heads == 0)):
        return None
    return (
        f"parallel.cp={cp} must divide the {heads} query heads of a tensor rank, and divide its {kv_heads} key heads "
        "or be a multiple of them, with parallel.cp_method=ulysses: use parallel.cp_method=ring"
    )


# Experts and what carries tokens to them.


def _no_experts(moe: MoeConfig | None, ep: int) -> str | None:
    if moe is not None or ep == 1:
        return None
    return f"parallel.ep={ep} must be 1 without experts: set parallel.ep=1 or add a moe section"


def _no_expert_tp(moe: MoeConfig | None, tp: int, etp: int) -> str | None:
    if moe is not None or etp in (1, tp):
        return None
    return f"parallel.etp={etp} must be 1 or tp without experts: set parallel.etp=tp or add a moe section"


def _experts(moe: MoeConfig | None, ep: int) -> str | None:
    return _cut("ep", ep, "moe.num_experts", moe.num_experts) if moe is not None else None


def _expert_grid(dp: int, tp: int, cp: int, ep: int, etp: int) -> str | None:
    stage = dp * cp * tp
    if stage % (ep * etp) == 0:
        return None
    # tp cancels out, so the rule is about fewer numbers
    if etp == tp:
        return f"parallel.ep={ep} must divide dp*cp={dp * cp} ({dp}*{cp}): lower parallel.ep or raise parallel.dp"
    return (
        f"parallel.ep*etp={ep * etp} ({ep}*{etp}) must divide dp*cp*tp={stage} ({dp}*{cp}*{tp}): "
        "lower parallel.ep or parallel.etp, or raise parallel.dp"
    )


def _two_hop_nodes(moe: MoeConfig | None, dispatcher: str, ep: int, node_size: int) -> str | None:
    if moe is None or dispatcher != "two_hop" or ep % node_size == 0:
        return None
    return (
        f"parallel.ep={ep} must be a multiple of parallel.node_size={node_size} with parallel.dispatcher=two_hop: "
        "change parallel.node_size"
    )


def _two_hop_whole(moe: MoeConfig | None, dispatcher: str, etp: int) -> str | None:
    if moe is None or dispatcher != "two_hop" or etp == 1:
        return None
    return f"parallel.etp={etp} must be 1 with parallel.dispatcher=two_hop: set parallel.etp=1"


def _capacity(moe: MoeConfig | None, train: TrainConfig, tp: int, cp: int) -> str | None:
    if moe is None or moe.dispatch.kind != "capacity":
        return None
    chunk = moe.dispatch.capacity_chunk or train.seq_length
    held = train.seq_length // (cp * tp)
    # a context rank has two pieces from different places of the sequence, and a chunk must lie in one of them
    if cp > 1:
        held = min(held, train.seq_length // (2 * cp))
    if held % chunk == 0:
        return None
    return (
        f"moe.dispatch.capacity_chunk={chunk} must divide the {held} consecutive tokens that a rank holds, so that the "
        f"layout does not change what is dropped: set moe.dispatch.capacity_chunk={held}"
    )


# Stages, micro-batches, ZeRO and recomputation.


def _chunks(schedule: str, chunks: int, pp: int) -> str | None:
    if chunks == 1 or (schedule == "interleaved" and pp > 1):
        return None
    if schedule == "interleaved":
        return f"parallel.chunks={chunks} must be 1 with parallel.pp=1: set parallel.chunks=1, or more stages"
    return (
        f"parallel.chunks={chunks} must be 1 with schedule={schedule}: set parallel.schedule=interleaved or "
        "parallel.chunks=1"
    )


def _pieces(model: ModelConfig, pp: int, chunks: int, split: Any) -> str | None:
    pieces, layers = pp * chunks, model.num_hidden_layers
    if split == "even":
        if pieces <= layers:
            return None
        product = f"parallel.pp*parallel.chunks={pieces} ({pp}*{chunks})" if chunks > 1 else f"parallel.pp={pp}"
        return f"{product} must be at most model.num_hidden_layers={layers}: lower parallel.pp"
    if len(split) != pieces:
        return (
            f"parallel.split=[{len(split)} entries] must have one for each of pp*chunks={pieces} pieces: "
            "list that many, or write even"
        )
    if sum(split) == layers:
        return None
    return f"parallel.split={split} must add up to model.num_hidden_layers={layers}, not {sum(split)}: change an entry"


def _interleaved(train: TrainConfig, micro_batch_size: int, dp: int, pp: int, schedule: str) -> str | None:
    # rounded down: `_batch` says where it does not divide
    count = train.global_batch_size // (micro_batch_size * dp)
    if pp == 1 or schedule != "interleaved" or count % pp == 0:
        return None
    return (
        f"{count} micro-batches a step must be a multiple of parallel.pp={pp} with parallel.schedule=interleaved: "
        "change train.global_batch_size or use parallel.schedule=1f1b"
    )


def _tied(model: ModelConfig, pp: int, zero: int) -> str | None:
    if pp == 1 or zero != 2 or not model.tie_word_embeddings:
        return None
    return (
        "parallel.zero=2 sums gradients after each micro-batch, which stages that share tied embeddings reach at "
        "different times: set parallel.zero=1"
    )


def _stages_recompute(pp: int, zero: int, recompute: str) -> str | None:
    if pp == 1 or zero == 3 or recompute == "none":
        return None
    return (
        f"parallel.recompute={recompute} has no use with parallel.pp={pp} but to free gathered weights under "
        "parallel.zero=3, for stages always compute their forward pass again: set parallel.recompute=none"
    )


def _zero_bubble(pp: int, schedule: str, recompute: str) -> str | None:
    if pp == 1 or schedule != "zb_h1" or recompute == "none":
        return None
    return (
        f"parallel.recompute={recompute} cannot go with schedule=zb_h1, whose backward pass runs in two parts: "
        "set parallel.recompute=none or parallel.schedule=1f1b"
    )


def _counts_first(moe: MoeConfig | None, pp: int, schedule: str) -> str | None:
    if moe is None or moe.balance.aux_over != "exact" or pp == 1 or schedule == "gpipe":
        return None
    return (
        f"parallel.schedule={schedule} must be gpipe with parallel.pp={pp} and moe.balance.aux_over=exact, which takes "
        "all forward passes first: set parallel.schedule=gpipe or moe.balance.aux_over=running"
    )


# What the router says of it.


def _router(moe: MoeConfig | None, axis: str, degree: int) -> str | None:
    """What the router says of one degree, all others being 1."""
    if moe is None or degree == 1:
        return None
    return next(moe.router.layout_problems(ParallelConfig().model_copy(update={axis: degree})), None)


RULES = (
    Rule("tp x pp x cp must divide the number of cards", _cards),
    Rule("dp x tp x pp x cp must be the number of cards", _data_parallel),
    Rule("dp x micro_batch_size must divide global_batch_size", _batch),
    Rule("the expert rows of a micro-batch must be numbers of int32", _rows),
    Rule("tp must divide the number of query heads", _query_heads),
    Rule("tp must divide the number of key-value heads or be a multiple of it", _key_heads),
    Rule("tp must divide vocab_size", _vocabulary),
    Rule("tp must divide the width of the dense FFN", _dense_ffn),
    Rule("etp must divide the width of an expert's FFN", _expert_ffn),
    Rule("tp x cp must divide seq_length (twice where cp > 1)", _sequence),
    Rule("cp must fit the heads of a tensor rank with ulysses", _ulysses),
    Rule("a dense model has ep 1", _no_experts),
    Rule("a dense model has etp 1 or tp", _no_expert_tp),
    Rule("ep must divide the number of experts", _experts),
    Rule("ep x etp must divide dp x cp x tp", _expert_grid),
    Rule("two hops go over whole nodes", _two_hop_nodes),
    Rule("two hops go to whole experts", _two_hop_whole),
    Rule("a rank must hold whole chunks of the capacity", _capacity),
    Rule("only an interleaved schedule over several stages has chunks", _chunks),
    Rule("pp x chunks pieces must share the layers", _pieces),
    Rule("an interleaved schedule needs a multiple of pp micro-batches", _interleaved),
    Rule("stages that share tied embeddings have no zero 2", _tied),
    Rule("stages recompute anyway, a policy is of use under zero 3 alone", _stages_recompute),
    Rule("the zb_h1 schedule has no recomputation", _zero_bubble),
    Rule("several stages count the whole batch first under gpipe alone", _counts_first),
    Rule("the router must allow dp", lambda moe, dp: _router(moe, "dp", dp)),
    Rule("the router must allow tp", lambda moe, tp: _router(moe, "tp", tp)),
    Rule("the router must allow cp", lambda moe, cp: _router(moe, "cp", cp)),
    Rule("the router must allow pp", lambda moe, pp: _router(moe, "pp", pp)),
    Rule("the router must allow chunks", lambda moe, chunks: _router(moe, "chunks", chunks)),
)
