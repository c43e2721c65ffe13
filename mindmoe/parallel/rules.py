"""What a layout must respect, between the sections of a run: every rule names values, rule and remedy (dry)."""

from collections.abc import Iterator

from mindmoe.model.config import ModelConfig
from mindmoe.moe.config import DmrConfig, MoeConfig
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.mesh import expert_problem
from mindmoe.train.config import TrainConfig


def batch_problems(train: TrainConfig, parallel: ParallelConfig) -> Iterator[str]:
    """A global batch is whole micro-batches on every data-parallel rank."""
    if parallel.dp != "auto" and train.global_batch_size % (train.micro_batch_size * parallel.dp):
        rows = train.micro_batch_size * parallel.dp
        nearest = max(round(train.global_batch_size / rows), 1) * rows
        yield (
            f"train.global_batch_size={train.global_batch_size} must be a multiple of "
            f"train.micro_batch_size * parallel.dp = {train.micro_batch_size} * {parallel.dp} = {rows}: "
            f"set train.global_batch_size={nearest}, or lower train.micro_batch_size"
        )


def slice_problems(
    model: ModelConfig, moe: MoeConfig | None, train: TrainConfig, parallel: ParallelConfig
) -> Iterator[str]:
    """Every dim that an axis cuts must be a multiple of its degree."""
    tp, cp, kv_heads = parallel.tp, parallel.cp, model.num_key_value_heads
    sequence = 2 * cp * tp if cp > 1 else tp
    cuts = [
        ("tp", tp, "model.num_attention_heads", model.num_attention_heads),
        ("tp", tp, "model.vocab_size", model.vocab_size),
    ]
    if moe is None or moe.num_shared_experts:
        shared = moe.num_shared_experts if moe is not None else 1
        cuts.append(("tp", tp, "the width of the dense FFN", 2 * shared * model.intermediate_size))
    if moe is not None:
        cuts.append(("etp", parallel.expert_tp, "model.intermediate_size", model.intermediate_size))
    for axis, degree, key, size in cuts:
        if size % degree:
            yield f"parallel.{axis}={degree} must divide {key}={size}: lower parallel.{axis}"
    if kv_heads % tp and tp % kv_heads:
        yield (
            f"parallel.tp={tp} must divide model.num_key_value_heads={kv_heads} or be a multiple of it: "
            "change parallel.tp"
        )
    if train.seq_length % sequence:
        axis, parts = (f"cp={cp}", f"2*cp*tp={sequence}") if cp > 1 else (f"tp={tp}", f"tp={tp}")
        yield (
            f"parallel.{axis} must divide train.seq_length={train.seq_length} into {parts} equal parts: "
            f"lower parallel.{axis[:2]}"
        )
    heads, kv_local = model.num_attention_heads // tp, max(1, kv_heads // tp)
    if cp > 1 and parallel.cp_method == "ulysses" and (heads % cp or (kv_local % cp and cp % kv_local)):
        yield (
            f"parallel.cp={cp} must divide the {heads} query heads of a tensor rank, and divide its {kv_local} key "
            "heads or be a multiple of them, with parallel.cp_method=ulysses: use parallel.cp_method=ring"
        )


def expert_problems(moe: MoeConfig | None, parallel: ParallelConfig) -> Iterator[str]:
    """Experts are spread evenly over ranks of one stage."""
    if moe is None:
        if parallel.ep > 1:
            yield f"parallel.ep={parallel.ep} must be 1 without experts: set parallel.ep=1 or add a moe section"
        return
    if moe.num_experts % parallel.ep:
        yield f"parallel.ep={parallel.ep} must divide moe.num_experts={moe.num_experts}: lower parallel.ep"
    if parallel.dp != "auto":
        problem = expert_problem(dp=parallel.dp, tp=parallel.tp, cp=parallel.cp, ep=parallel.ep, etp=parallel.expert_tp)
        if problem:
            yield ": ".join(problem)


def dispatch_problems(moe: MoeConfig | None, train: TrainConfig, parallel: ParallelConfig) -> Iterator[str]:
    """What each dispatcher can do."""
    if moe is None:
        return
    if parallel.dispatcher == "two_hop":
        if parallel.ep % parallel.node_size:
            yield (
                f"parallel.ep={parallel.ep} must be a multiple of parallel.node_size={parallel.node_size} with "
                "parallel.dispatcher=two_hop: change parallel.node_size"
            )
        if parallel.expert_tp > 1:
            yield (f"parallel.etp={parallel.expert_tp} must be 1 with parallel.dispatcher=two_hop: set parallel.etp=1")
    if moe.dispatch.kind == "capacity":
        chunk = moe.dispatch.capacity_chunk or train.seq_length
        held = train.seq_length // (parallel.cp * parallel.tp)
        if parallel.cp > 1:
            held = min(held, train.seq_length // (2 * parallel.cp))
        if held % chunk:
            yield (
                f"moe.dispatch.capacity_chunk={chunk} must divide the {held} consecutive tokens that a rank holds, so "
                f"that the layout does not change what is dropped: set moe.dispatch.capacity_chunk={held}"
            )


def stage_problems(model: ModelConfig, train: TrainConfig, parallel: ParallelConfig) -> Iterator[str]:
    """Pipeline stages, their micro-batches, and what ZeRO and recomputation can do with them."""
    pp, pieces, layers = parallel.pp, parallel.pp * parallel.chunks, model.num_hidden_layers
    if isinstance(parallel.split, list):
        if len(parallel.split) == pieces and sum(parallel.split) != layers:
            yield (
                f"parallel.split={parallel.split} must add up to model.num_hidden_layers={layers}, not "
                f"{sum(parallel.split)}: change an entry"
            )
    elif pieces > layers:
        product = f"parallel.pp*parallel.chunks={pieces} ({pp}*{parallel.chunks})" if parallel.chunks > 1 else None
        yield (f"{product or f'parallel.pp={pp}'} must be at most model.num_hidden_layers={layers}: lower parallel.pp")
    if pp > 1 and parallel.dp != "auto":
        count = train.global_batch_size // (train.micro_batch_size * parallel.dp)
        if parallel.schedule == "interleaved" and count % pp:
            yield (
                f"{count} micro-batches a step must be a multiple of parallel.pp={pp} with "
                "parallel.schedule=interleaved: change train.global_batch_size or use parallel.schedule=1f1b"
            )
    if pp > 1 and parallel.zero == 2 and model.tie_word_embeddings:
        yield (
            "parallel.zero=2 sums gradients after each micro-batch, which stages that share tied embeddings reach at "
            "different times: set parallel.zero=1"
        )
    if pp > 1 and parallel.recompute != "none" and parallel.zero != 3:
        yield (
            f"parallel.recompute={parallel.recompute} has no use with parallel.pp={pp} but to free gathered weights "
            "under parallel.zero=3, for stages always compute their forward pass again: set parallel.recompute=none"
        )


def routing_problems(moe: MoeConfig | None, parallel: ParallelConfig) -> Iterator[str]:
    """Routers whose decisions would depend on how tokens are spread over ranks, and difficulty over several stages."""
    if moe is None:
        return
    router = moe.router
    for axis in ("dp", "tp", "cp"):
        if not router.causal and getattr(parallel, axis) not in (1, "auto"):
            yield (
                f"parallel.{axis}={getattr(parallel, axis)} must be 1 with moe.router.type={router.type}, whose tokens "
                f"compete within a rank: set parallel.{axis}=1 or take another router"
            )
    if not isinstance(router, DmrConfig):
        return
    if router.features.difficulty_head and router.difficulty.target == "loss_head" and parallel.pp > 1:
        yield (
            f"parallel.pp={parallel.pp} must be 1 with moe.router.difficulty.target=loss_head, which the last stage "
            "alone can measure: set moe.router.difficulty.target=table and moe.router.features.grad_ema=true"
        )
    if router.features.has_table and parallel.chunks > 1:
        feature = "grad_ema" if router.features.grad_ema else "bigram"
        yield (
            f"parallel.chunks={parallel.chunks} must be 1 with moe.router.features.{feature}, of which a stage holds "
            "one table: set parallel.schedule=1f1b and parallel.chunks=1"
        )
