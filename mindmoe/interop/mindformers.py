"""`mindmoe config import-mindformers`: a training YAML of MindFormers as a config of ours, and what became of each key.

Two schemas are read: that of MindFormers 1.x (graph mode, `runner_config`, `parallel_config`, `model.model_config`)
and that of 2.x (PyNative, `training`, `parallelism`, flat `model`). Every leaf of the file ends in one of four ways:
kept, renamed, dropped because it changes nothing here, or lost because mindmoe cannot express it and the imported
run is not the same. Nothing is passed over silently: a key that the file leaves out has MindFormers' default, which is
carried over and told like any other.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, get_args

from mindmoe.config import strict_yaml
from mindmoe.config.load import load_config
from mindmoe.config.run import RunConfig
from mindmoe.host.errors import UserError
from mindmoe.host.files import replace_file, shown
from mindmoe.interop.mindformers_defaults import ALIASES, TRAINING_1, TRAINING_2
from mindmoe.interop.mindformers_keys import DROPPED, MODEL_DROPPED
from mindmoe.interop.mindformers_model import fill_in_model, take_model
from mindmoe.interop.mindformers_rows import Fate, Import, leaves_of, number_of

_SCHEDULES = {
    "ConstantWarmUpLR": "constant",
    "LinearWithWarmUpLR": "linear",
    "CosineWithWarmUpLR": "cosine",
    "WarmUpStableDecayLR": "wsd",
}
_WEIGHT = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?([eE]-?[0-9]{1,2})?")


def import_mindformers(path: Path) -> Import:
    """The config that a MindFormers YAML describes.

    Raises:
        UserError: the file is no YAML, or no training config of MindFormers.
    """
    name = shown(str(path), 300)
    document = strict_yaml.load(path)
    if not isinstance(document, dict):
        raise UserError(f"{name} is no mapping of keys", "give a config of MindFormers")
    mode = document.get("run_mode", "train")
    if mode not in ("train", "finetune"):
        raise UserError(
            f"{name} has run_mode={shown(str(mode))}: only training configs can be imported", "give one that trains"
        )
    second = "parallelism" in document or "training" in document
    if not second and not ({"runner_config", "parallel_config"} & document.keys()):
        raise UserError(
            f"{name} has neither runner_config and parallel_config nor training and parallelism",
            "give a training config of MindFormers, 1.x or 2.x",
        )
    document.pop("train_dataset_task", None)  # an anchor of train_dataset: the same keys again
    found = Import(dict(leaves_of(document)))
    model = "model." if second else "model.model_config."
    found.rename(model, ALIASES)
    found.assume("", TRAINING_2 if second else TRAINING_1)
    found.set("name", _name(found, path))
    found.take("trainer.model_name", "name", found.config["name"])
    fill_in_model(found, model)
    (_second_schema if second else _first_schema)(found)
    _memory(found, second)
    _common(found)
    take_model(found, model)
    _rest(found)
    found.config = {name: found.config[name] for name in RunConfig.model_fields if name in found.config}
    found.leaves = {found.name(key): value for key, value in found.leaves.items()}
    order = {key: place for place, key in enumerate(found.leaves)}
    found.rows.sort(key=lambda row: order[row.key])
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
    batch = max(1, micro * dp * parts)  # a degree of 0 is refused with the config
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
    _length(found, batch)
    found.choose("context.mode", "train.mode", {0: "graph", 1: "pynative"}, "graph")
    whole = not any(key.startswith("runner_wrapper.") for key in found.leaves)  # without the section it clips
    found.assume("runner_wrapper.", {"use_clip_grad": whole})
    norm = found.number("runner_wrapper.max_grad_norm", default=1.0)
    norm = norm if found.flag("runner_wrapper.use_clip_grad") else 0.0
    found.set("optim.clip_norm", norm)
    found.take("runner_wrapper.max_grad_norm", "optim.clip_norm", norm)
    found.take("runner_wrapper.use_clip_grad", "optim.clip_norm", norm, "1.0 without max_grad_norm")
    _scheduler(found, "lr_schedule.")
    _data(found, "train_dataset.data_loader.")
    for name in ("CheckpointMonitor", "CheckpointMointor"):
        found.take(f"callbacks.{name}.save_checkpoint_steps", "checkpoint.every")
        found.take(f"callbacks.{name}.keep_checkpoint_max", "checkpoint.keep_last")
    found.take("callbacks.MFLossMonitor.per_print_times", "observe.log_every")


def _length(found: Import, batch: int) -> None:
    """The steps of the run, where the file says them: by themselves, or by samples and epochs."""
    total = found.whole("lr_schedule.total_steps", default=-1)
    if total > 0:
        found.set("train.steps", total)
        found.take("lr_schedule.total_steps", "train.steps")
        return
    sizes = found.get("train_dataset.data_loader.sizes", default=[0])
    first = number_of(sizes[0] if isinstance(sizes, list) and sizes else sizes)
    samples = first if type(first) is int else 0
    epochs = found.whole("runner_config.epochs", default=1)
    if (steps := samples * max(epochs, 0) // batch) > 0:
        found.set("train.steps", steps)
        why = f"{samples} samples, {epochs} times, are {steps} steps of {batch}"
        found.tell("lr_schedule.total_steps", "renamed", "the length follows from the samples", "train.steps")
        found.tell("train_dataset.data_loader.sizes", "renamed", why, "train.steps")
        found.tell("runner_config.epochs", "renamed", "multiplies the samples", "train.steps")
        return
    found.assume("", {"lr_schedule.total_steps": -1})
    for key in ("lr_schedule.total_steps", "train_dataset.data_loader.sizes", "runner_config.epochs"):
        found.tell(key, "lost", "the file does not say how many steps that is: set train.steps")


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
    found.take("training.steps", "train.steps", found.whole("training.steps"))
    found.take("training.local_batch_size", "train.micro_batch_size", found.whole("training.local_batch_size"))
    found.take("training.global_batch_size", "train.global_batch_size", found.whole("training.global_batch_size"))
    found.take("training.max_norm", "optim.clip_norm", found.number("training.max_norm"))
    found.take("training.seed", "seed", found.whole("training.seed"))
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
    found.choose("context.device_target", "train.device", {"Ascend": "ascend", "CPU": "cpu"}, "ascend")
    betas = found.get("optimizer.betas")
    if isinstance(betas, list) and len(betas) == 2 and all(type(number_of(beta)) in (int, float) for beta in betas):
        found.set("optim.beta2", float(number_of(betas[1])))
        found.take("optimizer.betas", "optim.beta1", float(number_of(betas[0])), "optim.beta1 and optim.beta2")
    else:
        found.tell("optimizer.betas", "lost", "they are not two numbers: set optim.beta1 and optim.beta2")
    found.take("optimizer.eps", "optim.eps", found.number("optimizer.eps"))
    decay = found.number("optimizer.weight_decay")
    found.take("optimizer.weight_decay", "optim.weight_decay", decay, "norms, biases and embeddings are not decayed")
    found.assume("", {"optimizer.type": "AdamW"})
    if (kind := found.get("optimizer.type")) in ("AdamW", "FusedAdamW"):
        found.tell("optimizer.type", "dropped", "AdamW is what mindmoe has")
    else:
        found.tell("optimizer.type", "lost", f"mindmoe has AdamW, not {shown(str(kind))}")


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
    if isinstance(value, str):
        return value.lower() not in ("", "false", "no", "off", "none")
    return value is True or (isinstance(value, int | float) and value > 0)


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
    steps = found.config["train"].get("steps")
    if found.get(prefix + "type") is None:
        found.assume(prefix, {"type": "ConstantWarmUpLR"})
        found.tell(prefix + "type", "lost", "but it wants the key", "optim.schedule")
    schedule = found.choose(prefix + "type", "optim.schedule", _SCHEDULES, "constant")
    found.assume(prefix, {"learning_rate": 1e-5})
    rate = found.number(prefix + "learning_rate")
    found.set("optim.lr", rate)
    found.take(prefix + "learning_rate", "optim.lr", rate)
    _warm_up(found, prefix, steps)
    end = found.number(prefix + "lr_end", default=0.0) if schedule in ("cosine", "wsd") else 0.0
    if 0 <= end <= rate and rate > 0:
        found.set("optim.min_lr_ratio", end / rate)
        found.take(prefix + "lr_end", "optim.min_lr_ratio", end / rate, "as a share of the rate")
    else:
        note = "it is no rate below the first: mindmoe's schedules only fall"
        found.tell(prefix + "lr_end", "lost", note, "optim.min_lr_ratio")
    share, start = found.number(prefix + "decay_start_ratio"), found.whole(prefix + "decay_start_steps")
    if share is None and start is not None and steps:
        share = start / steps
    if share is not None and 0 <= share < 1:
        for key in ("decay_start_steps", "decay_start_ratio"):
            found.take(prefix + key, "optim.decay_fraction", 1 - share, "the share of the steps after it")
    for key in ("decay_start_steps", "decay_start_ratio"):
        found.tell(prefix + key, "lost", "it lies outside of the run, or the file does not say how long that is")
    if found.number(prefix + "warmup_lr_init", default=0.0) == 0.0:
        found.tell(prefix + "warmup_lr_init", "dropped", "the warm-up starts at 0 here too")
    else:
        found.tell(prefix + "warmup_lr_init", "lost", "the warm-up starts at 0 here")


def _warm_up(found: Import, prefix: str, steps: int | None) -> None:
    """How long the rate rises: MindFormers takes the share of the run before the number of steps."""
    found.assume(prefix, {} if found.get(prefix + "warmup_ratio") is not None else {"warmup_steps": 0})
    ratio, warmup = found.number(prefix + "warmup_ratio"), found.whole(prefix + "warmup_steps")
    if ratio is not None and (ratio == 0 or steps):
        warmup = int(ratio * steps) if steps else 0
        found.take(prefix + "warmup_ratio", "optim.warmup_steps", warmup, "of the steps of the run")
        found.tell(prefix + "warmup_steps", "dropped", "warmup_ratio comes first", "optim.warmup_steps")
    elif ratio is not None:
        found.tell(prefix + "warmup_ratio", "lost", "of a length that the file does not say: set optim.warmup_steps")
    if warmup is not None:
        warmup = min(warmup, steps) if steps else warmup
        found.set("optim.warmup_steps", warmup)
        found.take(prefix + "warmup_steps", "optim.warmup_steps", warmup)


def _data(found: Import, prefix: str) -> None:
    """The .bin/.idx files, which both read, and the length of a sequence."""
    paths = found.get(prefix + "config.data_path", default=[])
    pairs = list(zip(paths[::2], paths[1::2], strict=False)) if isinstance(paths, list) else []
    weights = [float(text) if _WEIGHT.fullmatch(text := str(weight)) else 0.0 for weight, _ in pairs]
    if pairs and len(paths) % 2 == 0 and all(weights) and all(isinstance(path, str) for _, path in pairs):
        sources = [{"path": path, "weight": weight} for (_, path), weight in zip(pairs, weights, strict=True)]
        note = "prefixes of .bin/.idx pairs; the blend is the same, the order of the samples is mindmoe's"
        found.take(prefix + "config.data_path", "data.sources", sources, note)
    else:
        found.set("data.sources", "data/pretrain")
        kind = shown(str(found.get(prefix + "type", default="no data loader")))
        note = f"{kind} is not read, or has no pairs of weight and path: prepare the data, and set data.sources"
        found.tell(prefix + "config.data_path", "lost", note, "data.sources")
        found.tell(prefix + "type", "lost", note, "data.sources")
    if found.get(prefix + "type") == "BlendedMegatronDatasetDataLoader":
        found.tell(prefix + "type", "dropped", "mindmoe reads .bin/.idx")
    found.take(prefix + "config.seed", "data.seed")
    keys = ("config.reset_attention_mask", "config.create_compressed_eod_mask")
    own = any([found.flag(prefix + key) for key in keys])
    found.set("data.document_attention", own)
    for key in ("reset_attention_mask", "create_compressed_eod_mask"):
        found.take(prefix + f"config.{key}", "data.document_attention", own, "attention stays inside documents")
    positions = found.flag(prefix + "config.reset_position_ids")
    if positions == own:
        note = "positions restart where attention does"
        found.tell(prefix + "config.reset_position_ids", "dropped", note, "data.document_attention")
    else:
        found.tell(prefix + "config.reset_position_ids", "lost", "here positions restart exactly where attention does")
    masked = found.flag(prefix + "config.eod_mask_loss")
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


def _rest(found: Import) -> None:
    """Whatever no rule above has taken."""
    for key, value in found.leaves.items():
        if any(row.key == found.name(key) for row in found.rows):
            continue
        short = key.rpartition(".")[2]
        if key.startswith("model.") and short in MODEL_DROPPED:
            found.tell(key, "dropped", MODEL_DROPPED[short])
        elif note := next((note for start, note in DROPPED.items() if key == start or key.startswith(start + ".")), ""):
            found.tell(key, "dropped", note)
        else:
            found.tell(key, *(("dropped", "null") if value is None else ("lost", "no such thing in mindmoe")))


def write_import(path: Path, out: Path) -> int:
    """Writes the imported config and prints what became of each key; returns 1 if something was lost, else 0.

    Raises:
        UserError: the file cannot be imported, or `out` exists or cannot be written.
    """
    found = import_mindformers(path)
    if os.path.lexists(out):
        raise UserError(f"{shown(str(out), 300)} exists", "give another --out, or remove it")
    try:
        replace_file(out, render(found, path.name))
    except (OSError, ValueError) as error:  # a NUL character is a ValueError
        raise UserError(f"cannot write {shown(str(out), 300)}: {error}", "give another --out") from None
    width = min(60, max((len(row.key) for row in found.rows), default=0))
    for row in found.rows:
        target = f" -> {row.target}" if row.target else ""
        print(f"{row.fate:8} {shown(row.key, 200):{width}}{target}" + (f"  ({row.note})" if row.note else ""))
    counts = {fate: sum(row.fate == fate for row in found.rows) for fate in get_args(Fate)}
    print(", ".join(f"{number} {fate}" for fate, number in counts.items()) + f"; wrote {out}")
    try:
        load_config(out)
    except UserError as error:
        print(f"it needs your hand before it runs: {error}")
        return 1
    return 1 if counts["lost"] else 0


def render(found: Import, source: str) -> str:
    """The config as YAML, below a comment that names what was lost."""
    lost = [f"#   {shown(row.key, 200)}: {row.note}" for row in found.rows if row.fate == "lost"]
    head = [f"# Imported from {shown(source, 200)}, a config of MindFormers."]
    if lost:
        head += ["# Not the same run, because these could not be carried over:", *lost]
    return "\n".join(head) + "\n\n" + strict_yaml.dump(found.config)
