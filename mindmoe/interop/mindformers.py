"""`mindmoe config import-mindformers`: a training YAML of MindFormers as a config of ours, and what became of each key.

Two schemas are read: that of MindFormers 1.x (graph mode, `runner_config`, `parallel_config`, `model.model_config`)
and that of 2.x (PyNative, `training`, `parallelism`, flat `model`). Every leaf of the file ends in one of four ways:
kept, renamed, dropped because it changes nothing here, or lost because mindmoe cannot express it and the imported
run is not the same. Nothing is passed over silently.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import yaml

from mindmoe.config import RunConfig
from mindmoe.errors import ConfigError, UserError
from mindmoe.files import read_text
from mindmoe.interop.mindformers_keys import DROPPED, LOST, MODEL_DROPPED, MODEL_RENAMED
from mindmoe.interop.mindformers_rows import Fate, Import, leaves_of, number_of, whole_of
from mindmoe.load import load_config
from mindmoe.strict_yaml import dump

_SCHEDULES = {
    "ConstantWarmUpLR": "constant",
    "LinearWithWarmUpLR": "linear",
    "CosineWithWarmUpLR": "cosine",
    "WarmUpStableDecayLR": "wsd",
}
_NUM_EXPERTS = ("num_experts", "n_routed_experts", "num_moe_experts")
_MAX_LEAVES = 20_000  # aliases could make a small file endless


def import_mindformers(path: Path) -> Import:
    """The config that a MindFormers YAML describes.

    Raises:
        UserError: the file is no training config of MindFormers.
    """
    try:
        document = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}", "give a config of MindFormers") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is no mapping of keys", "give a config of MindFormers")
    mode = document.get("run_mode", "train")
    if mode not in ("train", "finetune"):
        raise UserError(f"{path} has run_mode={mode}: only training configs can be imported", "give one that trains")
    second = "parallelism" in document or "training" in document
    if not second and not ({"runner_config", "parallel_config"} & document.keys()):
        raise UserError(
            f"{path} has neither runner_config and parallel_config nor training and parallelism",
            "give a training config of MindFormers, 1.x or 2.x",
        )
    document.pop("train_dataset_task", None)  # an anchor of train_dataset: the same keys again
    leaves = dict(itertools.islice(leaves_of(document), _MAX_LEAVES))
    if len(leaves) == _MAX_LEAVES:
        raise UserError(f"{path} has more than {_MAX_LEAVES} keys", "give a config of MindFormers")
    found = Import(leaves)
    found.set("name", _name(found, path))
    found.take("trainer.model_name", "name", found.config["name"])
    (_second_schema if second else _first_schema)(found)
    _memory(found, second)
    _common(found)
    _model(found, "model." if second else "model.model_config.")
    _rest(found)
    found.config = {name: found.config[name] for name in RunConfig.model_fields if name in found.config}
    found.rows.sort(key=lambda row: list(found.leaves).index(row.key))
    return found


def _name(found: Import, path: Path) -> str:
    text = str(found.get("trainer.model_name", default=path.stem))
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in text).strip("._-") or "imported"


def _first_schema(found: Import) -> None:
    """MindFormers 1.x: batch and length of the run follow from several keys."""
    dp = _degree(found, "parallel_config.data_parallel", "dp")
    _degree(found, "parallel_config.model_parallel", "tp")
    pp = _degree(found, "parallel_config.pipeline_stage", "pp")
    cp = _degree(found, "parallel_config.context_parallel", "cp")
    _experts_degree(found, "parallel_config.expert_parallel", dp * cp)
    micro = found.whole("runner_config.batch_size", default=1)
    parts = found.whole("parallel_config.micro_batch_num", default=1) if pp > 1 else 1
    parts *= found.whole("micro_batch_interleave_num", default=1)
    parts *= found.whole("runner_config.gradient_accumulation_steps", default=1)
    batch = micro * dp * parts
    found.set("train.micro_batch_size", micro)
    found.set("train.global_batch_size", batch)
    note = f"train.global_batch_size={batch} is batch_size * data_parallel * micro-batches = {micro}*{dp}*{parts}"
    found.take("runner_config.batch_size", "train.micro_batch_size", note=note)
    for key in (
        "parallel_config.micro_batch_num",
        "micro_batch_interleave_num",
        "runner_config.gradient_accumulation_steps",
    ):
        found.tell(key, "renamed", "a factor of the batch of a step", "train.global_batch_size")
    total = found.whole("lr_schedule.total_steps", default=-1)
    sizes = found.get("train_dataset.data_loader.sizes", default=[0])
    samples = whole_of(sizes[0] if isinstance(sizes, list) else sizes, "sizes") * found.whole(
        "runner_config.epochs", default=1
    )
    steps = total if total > 0 else samples // batch
    found.set("train.steps", max(1, steps))
    if total > 0:
        found.take("lr_schedule.total_steps", "train.steps")
    else:
        found.tell("lr_schedule.total_steps", "renamed", "-1: the length follows from the samples", "train.steps")
    if steps > 0:
        why = f"{samples} samples are {max(1, steps)} steps of {batch}"
        found.tell("train_dataset.data_loader.sizes", "renamed", why, "train.steps")
        found.tell("runner_config.epochs", "renamed", "multiplies the samples", "train.steps")
    else:
        found.tell("runner_config.epochs", "lost", "the file does not say how many steps that is: set train.steps")
    found.take("context.mode", "train.mode", {0: "graph", 1: "pynative"}.get(found.get("context.mode", default=0)))
    clips = found.get("runner_wrapper.use_clip_grad", default=False)
    norm = found.number("runner_wrapper.max_grad_norm", default=1.0) if clips else 0.0
    found.set("optim.clip_norm", norm)
    found.take("runner_wrapper.max_grad_norm", "optim.clip_norm", norm)
    found.take("runner_wrapper.use_clip_grad", "optim.clip_norm", norm, "1.0 without max_grad_norm")
    _scheduler(found, "lr_schedule.")
    _data(found, "train_dataset.data_loader.")
    for name in ("CheckpointMonitor", "CheckpointMointor"):
        found.take(f"callbacks.{name}.save_checkpoint_steps", "checkpoint.every")
        found.take(f"callbacks.{name}.keep_checkpoint_max", "checkpoint.keep_last")
    found.take("callbacks.MFLossMonitor.per_print_times", "observe.log_every")


def _second_schema(found: Import) -> None:
    """MindFormers 2.x: the batch of a step is written down."""
    dp = found.whole("parallelism.data_parallel_shard", default=-1)
    if dp < 0:
        found.take("parallelism.data_parallel_shard", "parallel.dp", "auto", "-1: what the other degrees leave")
        dp = 0
    else:
        _degree(found, "parallelism.data_parallel_shard", "dp")
    _degree(found, "parallelism.tensor_parallel", "tp")
    _degree(found, "parallelism.pipeline_parallel", "pp")
    cp = _degree(found, "parallelism.context_parallel", "cp")
    _experts_degree(found, "parallelism.expert_parallel", dp * cp)
    found.set("train.steps", 1)
    found.take("training.steps", "train.steps", found.whole("training.steps"))
    found.set("train.micro_batch_size", 1)
    found.take("training.local_batch_size", "train.micro_batch_size")
    found.set("train.global_batch_size", max(1, dp))
    found.take("training.global_batch_size", "train.global_batch_size")
    found.take("training.max_norm", "optim.clip_norm")
    found.take("training.seed", "seed")
    found.set("train.mode", "pynative")
    _scheduler(found, "lr_scheduler.")
    _data(found, "train_dataset.dataloader.")
    found.take("checkpoint.save_interleaved_steps", "checkpoint.every")
    found.take("checkpoint.save_max", "checkpoint.keep_last")
    found.take("checkpoint.save_path", "output_dir")


def _common(found: Import) -> None:
    """What both schemas share."""
    found.take("seed", "seed")
    found.take("output_dir", "output_dir")
    device = str(found.get("context.device_target", default="Ascend")).lower()
    found.set("train.device", device if device in ("cpu", "ascend") else "ascend")
    found.take("context.device_target", "train.device", found.config["train"]["device"])
    betas = found.get("optimizer.betas")
    if isinstance(betas, list) and len(betas) == 2:
        found.set("optim.beta2", number_of(betas[1]))
        found.take("optimizer.betas", "optim.beta1", number_of(betas[0]), "optim.beta1 and optim.beta2")
    found.take("optimizer.eps", "optim.eps", found.number("optimizer.eps"))
    decay = found.number("optimizer.weight_decay")
    found.take("optimizer.weight_decay", "optim.weight_decay", decay, "norms, biases and embeddings are not decayed")
    kind = found.get("optimizer.type", default="AdamW")
    if kind in ("AdamW", "PmaAdamW", "FusedAdamW"):
        found.tell("optimizer.type", "dropped", "AdamW is what mindmoe has")
    else:
        found.tell("optimizer.type", "lost", f"mindmoe has AdamW, not {kind}")


def _memory(found: Import, second: bool) -> None:
    """What is computed again, and what is sharded over replicas."""
    stages = found.config["parallel"].get("pp", 1)
    whole_key, part_key = ("recompute.mode", "recompute.select_module") if second else _RECOMPUTE_KEYS
    asked, part = found.get(whole_key), [found.get(key) for key in (part_key, *_under(found, part_key))]
    layers = found.get("recompute.full_recompute_layer") if second else asked
    if second:
        full, some = asked == "full", isinstance(asked, str) and asked.startswith("select")
    else:
        full, some = _any(asked), not _any(asked) and _any(part)
    choice = "full" if full else "selective" if some else "none"
    keys = [whole_key, part_key, "recompute.full_recompute_layer", *_under(found, part_key)]
    if stages > 1 and choice != "none":
        for key in keys:
            found.tell(key, "dropped", "a pipeline stage always computes its forward pass again")
    elif choice != "none":
        found.take(whole_key, "parallel.recompute", choice, "" if full else "the FFN half of each layer")
        found.set("parallel.recompute", choice)
        count = layers if isinstance(layers, int) and not isinstance(layers, bool) and layers > 0 else None
        if full and count is not None:
            found.set("parallel.recompute_layers", count)
            found.tell("recompute.full_recompute_layer", "renamed", "the first layers", "parallel.recompute_layers")
        elif full and isinstance(layers, list):
            found.tell("recompute.full_recompute_layer", "renamed", "every layer, not the listed ones")
        for key in keys[1:]:
            found.tell(key, "renamed", "the FFN half of each layer" if some else "included", "parallel.recompute")
    if second:
        return
    shards = _any(found.get("parallel.enable_parallel_optimizer"))
    gradients = "parallel.parallel_optimizer_config.gradient_accumulation_shard"
    if shards:
        zero = 2 if _any(found.get(gradients)) else 1
        found.take("parallel.enable_parallel_optimizer", "parallel.zero", zero)
        found.tell(gradients, "renamed", "2 shards the summed gradients too, 1 does not", "parallel.zero")
        found.set("parallel.zero", zero)


_RECOMPUTE_KEYS = ("recompute_config.recompute", "recompute_config.select_recompute")


def _any(value: Any) -> bool:
    """Whether a switch is on: true, a number of layers, or a list with one of them in it."""
    if isinstance(value, list):
        return any(map(_any, value))
    return value is True or (isinstance(value, int | float) and value > 0) or (isinstance(value, str) and value != "")


def _under(found: Import, key: str) -> list[str]:
    """The leaves below a key: select_recompute may name operators."""
    return [leaf for leaf in found.leaves if leaf.startswith(f"{key}.")]


def _degree(found: Import, key: str, axis: str) -> int:
    value = found.whole(key, default=1)
    found.set(f"parallel.{axis}", value)
    found.take(key, f"parallel.{axis}", value)
    return value


def _experts_degree(found: Import, key: str, ranks: int) -> None:
    """MindFormers spreads experts over data and tensor ranks, mindmoe over data and context ranks."""
    wanted = found.whole(key, default=1)
    degree = math.gcd(wanted, ranks) if ranks > 0 else wanted
    found.set("parallel.ep", degree)
    if degree == wanted:
        found.take(key, "parallel.ep", degree)
    else:
        found.tell(
            key,
            "lost",
            f"{degree} of {wanted}: parallel.ep must divide dp*cp={ranks}; raise dp for the rest",
            "parallel.ep",
        )


def _scheduler(found: Import, prefix: str) -> None:
    """The learning rate; both warm up linearly, and their step s has our step s - 1's rate."""
    kind = found.get(prefix + "type", default="ConstantWarmUpLR")
    steps, rate = found.config["train"]["steps"], found.number(prefix + "learning_rate", default=1e-5)
    found.set("optim.lr", rate)
    found.take(prefix + "learning_rate", "optim.lr", rate)
    if kind in _SCHEDULES:
        found.take(prefix + "type", "optim.schedule", _SCHEDULES[kind])
    else:
        found.set("optim.schedule", "constant")
        found.tell(
            prefix + "type", "lost", f"mindmoe has {', '.join(sorted(_SCHEDULES))}, not {kind}", "optim.schedule"
        )
    ratio = found.number(prefix + "warmup_ratio", default=0.0)
    warmup = found.whole(prefix + "warmup_steps", default=round(ratio * steps))
    found.set("optim.warmup_steps", min(warmup, steps))
    found.take(prefix + "warmup_steps", "optim.warmup_steps", min(warmup, steps))
    found.take(prefix + "warmup_ratio", "optim.warmup_steps", min(warmup, steps), "of the steps of the run")
    end = found.number(prefix + "lr_end", default=0.0)
    if _SCHEDULES.get(kind) == "linear":
        end = 0.0
    if end <= rate:
        found.set("optim.min_lr_ratio", end / rate)
        found.take(prefix + "lr_end", "optim.min_lr_ratio", end / rate, "as a share of the rate")
    else:
        found.tell(
            prefix + "lr_end", "lost", "it is above the rate: mindmoe's schedules only fall", "optim.min_lr_ratio"
        )
    start = found.whole(prefix + "decay_start_steps")
    if start is None and (share := found.number(prefix + "decay_start_ratio")) is not None:
        start = round(share * steps)
    if start is not None and 0 <= start < steps:
        fraction = (steps - start) / steps
        for key in ("decay_start_steps", "decay_start_ratio"):
            found.take(prefix + key, "optim.decay_fraction", fraction, "the share of the steps after it")
    if found.number(prefix + "warmup_lr_init", default=0.0) == 0.0:
        found.tell(prefix + "warmup_lr_init", "dropped", "the warm-up starts at 0 here too")
    else:
        found.tell(prefix + "warmup_lr_init", "lost", "the warm-up starts at 0 here")


def _data(found: Import, prefix: str) -> None:
    """The .bin/.idx files, which both read, and the length of a sequence."""
    paths = found.get(prefix + "config.data_path", default=[])
    if isinstance(paths, list) and len(paths) >= 2 and len(paths) % 2 == 0:
        sources = [
            {"path": str(path), "weight": float(whole_of(w, "data_path")) if str(w).isdigit() else number_of(w)}
            for w, path in zip(paths[::2], paths[1::2], strict=True)
        ]
        note = "prefixes of .bin/.idx pairs; the blend is the same, the order of the samples is mindmoe's"
        found.take(prefix + "config.data_path", "data.sources", sources, note)
    else:
        found.set("data.sources", "data/pretrain")
        kind = found.get(prefix + "type", default="no data loader")
        found.tell(
            prefix + "type", "lost", f"{kind} is not read: prepare the data, and set data.sources", "data.sources"
        )
    if found.get(prefix + "type") == "BlendedMegatronDatasetDataLoader":
        found.tell(prefix + "type", "dropped", "mindmoe reads .bin/.idx")
    found.take(prefix + "config.seed", "data.seed")
    own = bool(found.get(prefix + "config.reset_attention_mask", default=False))
    own = own or bool(found.get(prefix + "config.create_compressed_eod_mask", default=False))
    found.set("data.document_attention", own)
    for key in ("reset_attention_mask", "create_compressed_eod_mask"):
        found.take(prefix + f"config.{key}", "data.document_attention", own, "attention stays inside documents")
    positions = bool(found.get(prefix + "config.reset_position_ids", default=False))
    if positions == own:
        note = "positions restart where attention does"
        found.tell(prefix + "config.reset_position_ids", "dropped", note, "data.document_attention")
    else:
        found.tell(prefix + "config.reset_position_ids", "lost", "here positions restart exactly where attention does")
    masked = bool(found.get(prefix + "config.eod_mask_loss", default=False))
    if masked == own:
        found.tell(prefix + "config.eod_mask_loss", "dropped", "as data.document_attention sets it")
    else:
        found.tell(
            prefix + "config.eod_mask_loss", "lost", "the loss at the end of a document follows document_attention"
        )
    length = found.whole(
        prefix + "config.seq_length", "model.model_config.seq_length", "model.seq_length", default=4096
    )
    found.set("train.seq_length", length)
    for key in (prefix + "config.seq_length", "model.model_config.seq_length", "model.seq_length"):
        found.take(key, "train.seq_length", length)


def _model(found: Import, prefix: str) -> None:
    """The network. What makes it another one than the file describes is told as lost."""
    get: Callable[..., Any] = lambda *keys, default=None: found.get(*(prefix + key for key in keys), default=default)  # noqa: E731
    for key, target in MODEL_RENAMED.items():
        if get(key) is not None:
            found.take(prefix + key, target)
    model = found.config.setdefault("model", {})
    heads = found.whole(prefix + "num_attention_heads", default=1)
    hidden = found.whole(prefix + "hidden_size", default=heads)
    model.setdefault("num_key_value_heads", heads)
    model.setdefault("head_dim", hidden // heads)
    model.setdefault("max_position_embeddings", max(found.config["train"]["seq_length"], 4096))
    model |= {"attention_sinks": False, "layer_types": "full", "rope_scaling": None}
    model["attention_bias"] = bool(get("attention_bias", "add_qkv_bias", "add_bias_linear", default=False))
    for key in ("attention_bias", "add_qkv_bias", "add_bias_linear"):
        found.take(prefix + key, "model.attention_bias", model["attention_bias"])
    if get("untie_embeddings_and_output_weights") is not None:
        tied = not get("untie_embeddings_and_output_weights")
        found.take(prefix + "untie_embeddings_and_output_weights", "model.tie_word_embeddings", tied)
    if get("compute_dtype") in ("bfloat16", "float32"):
        precision = "bf16" if get("compute_dtype") == "bfloat16" else "fp32"
        found.take(prefix + "compute_dtype", "train.precision", precision, "weights, norms and softmax stay fp32")
    experts = found.whole(*(prefix + key for key in _NUM_EXPERTS), default=0)
    if experts > 1:
        _experts(found, prefix, get, experts)
    else:
        found.set("moe", None)
    note = "mindmoe's FFN is gpt-oss's clamped SwiGLU, (up + 1) * gate * sigmoid(1.702 gate)"
    found.leaves.setdefault(prefix + "hidden_act", "silu")  # MindFormers' default: the difference is told in any case
    found.tell(prefix + "hidden_act", "lost", note)
    if "hidden_size" not in model:
        note = "the shape of the network stands in config.json of that folder: add it under model"
        found.tell("pretrained_model_dir", "lost", note, "model")
    for key, (harmless, note) in LOST.items():
        value = get(key)
        if value is not None:
            same = value in harmless
            found.tell(prefix + key, "dropped" if same else "lost", "the same here" if same else note)


def _experts(found: Import, prefix: str, get: Callable[..., Any], experts: int) -> None:
    """Routing."""
    for key in _NUM_EXPERTS:
        found.take(prefix + key, "moe.num_experts", experts)
    found.set("moe.num_experts_per_tok", 1)
    found.take(prefix + "num_experts_per_tok", "moe.num_experts_per_tok")
    found.take(prefix + "moe_router_topk", "moe.num_experts_per_tok")
    found.take(prefix + "n_shared_experts", "moe.num_shared_experts")
    if get("moe_intermediate_size") is not None:
        found.take(prefix + "moe_intermediate_size", "model.intermediate_size")
        found.rows = [row for row in found.rows if row.key != prefix + "intermediate_size"]
        note = "of dense layers; each layer has experts here, of moe_intermediate_size"
        found.tell(prefix + "intermediate_size", "dropped", note)
    score = get("scoring_func", "moe_router_score_function", default="softmax")
    found.set("moe.router.score", "sigmoid" if score == "sigmoid" else "softmax")
    found.set("moe.router.linear_bias", False)
    for key in ("scoring_func", "moe_router_score_function"):
        found.take(prefix + key, "moe.router.score", found.config["moe"]["router"]["score"])
    found.take(prefix + "norm_topk_prob", "moe.router.norm_topk")
    found.take(
        prefix + "routed_scaling_factor", "moe.router.route_scale", found.number(prefix + "routed_scaling_factor")
    )
    groups = max(1, found.whole(prefix + "n_group", default=1))
    found.take(prefix + "n_group", "moe.router.num_groups", groups)
    found.take(prefix + "topk_group", "moe.router.topk_groups", max(1, found.whole(prefix + "topk_group", default=1)))
    found.set("moe.balance.aux_coef", 0.0)
    found.take(prefix + "moe_aux_loss_coeff", "moe.balance.aux_coef", found.number(prefix + "moe_aux_loss_coeff"))
    found.take(prefix + "moe_z_loss_coeff", "moe.balance.z_coef", found.number(prefix + "moe_z_loss_coeff"))
    kind = get("moe_router_load_balancing_type", default="aux_loss")
    if kind == "gbs_aux_loss":
        found.tell(prefix + "moe_router_load_balancing_type", "dropped", "the loss is over the global batch here too")
    else:
        found.tell(prefix + "moe_router_load_balancing_type", "lost", f"the loss is over the global batch, not {kind}")
    if get("moe_router_enable_expert_bias", default=False):
        rate = found.number(prefix + "moe_router_bias_update_rate", default=0.001)
        found.set("moe.balance.bias_rate", rate)
        found.take(prefix + "moe_router_enable_expert_bias", "moe.balance.bias_rate", rate)
        found.take(prefix + "moe_router_bias_update_rate", "moe.balance.bias_rate", rate)
    for key in ("moe_router_enable_expert_bias", "moe_router_bias_update_rate"):
        found.tell(prefix + key, "dropped", "the selection bias is off, as here by default")
    capacity = get("capacity_factor", "moe_expert_capacity_factor")
    found.set("moe.dispatch.kind", "capacity" if capacity else "dropless")
    if not capacity:
        found.tell(prefix + "moe_token_drop_policy", "dropped", "without a capacity no token is dropped")
    for key in ("capacity_factor", "moe_expert_capacity_factor"):
        if get(key):
            found.take(prefix + key, "moe.dispatch.capacity_factor", found.number(prefix + key))


def _rest(found: Import) -> None:
    """Whatever no rule above has taken."""
    for key in found.leaves:
        if any(row.key == key for row in found.rows):
            continue
        short = key.rpartition(".")[2]
        if key.startswith("model.") and short in MODEL_DROPPED:
            found.tell(key, "dropped", MODEL_DROPPED[short])
        elif note := next((note for start, note in DROPPED.items() if key == start or key.startswith(start + ".")), ""):
            found.tell(key, "dropped", note)
        else:
            found.tell(key, "lost", "no such thing in mindmoe")


def write_import(path: Path, out: Path) -> int:
    """Writes the imported config and prints what became of each key; returns 1 if something was lost, else 0.

    Raises:
        UserError: the file cannot be imported, or `out` exists or cannot be written.
    """
    found = import_mindformers(path)
    if out.exists():
        raise UserError(f"{out} exists", "give another --out, or remove it")
    try:
        out.write_text(render(found, path.name), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}", "give another --out") from None
    width = max((len(row.key) for row in found.rows), default=0)
    for row in found.rows:
        target = f" -> {row.target}" if row.target else ""
        print(f"{row.fate:8} {row.key:{width}}{target}" + (f"  ({row.note})" if row.note else ""))
    counts = {fate: sum(row.fate == fate for row in found.rows) for fate in get_args(Fate)}
    print(", ".join(f"{number} {fate}" for fate, number in counts.items()) + f"; wrote {out}")
    try:
        load_config(out)
    except ConfigError as error:
        print(f"it needs your hand before it runs: {error}")
        return 1
    return 1 if counts["lost"] else 0


def render(found: Import, source: str) -> str:
    """The config as YAML, below a comment that names what was lost."""
    lost = [f"#   {row.key}: {row.note}" for row in found.rows if row.fate == "lost"]
    head = [f"# Imported from {source}, a config of MindFormers."]
    if lost:
        head += ["# Not the same run, because these could not be carried over:", *lost]
    return "\n".join(head) + "\n\n" + dump(found.config)
