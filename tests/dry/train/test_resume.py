"""Continuing a checkpoint: what counts as done, what is refused, and what is told."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindmoe.checkpoint import store
from mindmoe.checkpoint.chunks import Chunk
from mindmoe.checkpoint.folder import MANIFEST
from mindmoe.checkpoint.identity import check_identity, run_meta, table_of
from mindmoe.checkpoint.manifest import Meta
from mindmoe.checkpoint.retention import Retention
from mindmoe.config.load import load_config
from mindmoe.config.run import RunConfig, resolve
from mindmoe.data.identity import data_identity
from mindmoe.data.indexed import IndexedWriter
from mindmoe.host.errors import CheckpointError, UserError
from mindmoe.train.folder import RunFolder
from mindmoe.train.preflight import finished_steps, preflight
from mindmoe.train.resume import changes, differences

CONFIG = """
name: small
model: {vocab_size: 512, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1,
        head_dim: 8, intermediate_size: 8, max_position_embeddings: 64, rope_scaling: null}
moe: {num_experts: 4, num_experts_per_tok: 2}
train: {steps: 6, seq_length: 16, global_batch_size: 4, micro_batch_size: 4}
optim: {lr: 0.003, warmup_steps: 1}
"""


def tokens(prefix: Path, seed: int = 0, documents: int = 100) -> None:
    rng = np.random.default_rng(seed)
    with IndexedWriter(prefix, np.uint16) as writer:
        for _ in range(documents):
            writer.add_document([rng.integers(0, 512, 40)])


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., RunConfig]:
    tokens(tmp_path / "a")
    tokens(tmp_path / "held", seed=9)
    (tmp_path / "small.yaml").write_text(CONFIG)

    def load(*words: str) -> RunConfig:
        places = [f"output_dir={tmp_path}/runs", f"data.sources={tmp_path}/a", f"data.valid={tmp_path}/held"]
        return resolve(load_config(tmp_path / "small.yaml", [*places, *words]), 1)

    return load


def save(config: RunConfig, step: int, meta: Meta | None = None) -> Path:
    """A checkpoint of a config, as its writer would publish it."""
    folder = RunFolder.of(config)
    folder.create(config)
    root = folder.checkpoints
    meta = meta or run_meta(config, 1, "", data_identity(config.data))
    tensors = {name: Chunk(np.full(shape, step, np.float32)) for name, (_, shape) in table_of(config).items()}
    tensors |= {f"adam_{m}.{name}": chunk for name, chunk in tensors.items() for m in "mv"}
    return store.save(root, step, tensors, replace(meta, generation=store.claim(root)), Retention(keep_last=9), 0)


def events(config: RunConfig, **options: Any) -> dict[str, str]:
    with store.open_step(RunFolder.of(config).checkpoints / "step-00000006") as checkpoint:
        return dict(changes(checkpoint.manifest, config, data_identity(config.data), **options))


def flip(step: Path) -> None:
    shard = step / "shard-00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)


@pytest.mark.parametrize(
    "harm",
    [
        flip,
        lambda step: (step / MANIFEST).unlink(),
        lambda step: (step / MANIFEST).write_bytes((step / MANIFEST).read_bytes()[:-9]),
        lambda step: (step / "shard-00000.safetensors").unlink(),
        lambda step: (step / "shard-00000.safetensors").write_bytes(b""),
        lambda step: [shutil.rmtree(step), step.mkdir()],
        lambda step: [shutil.rmtree(step), step.write_text("")],
    ],
)
def test_only_a_last_step_that_can_be_loaded_is_done(load, harm: Callable[[Path], Any]) -> None:
    save(load(), 3)
    last = save(load(), 6)
    assert finished_steps(load()) == 6
    harm(last)
    assert finished_steps(load()) == 3
    (last.parent / "step-00000099").mkdir()
    assert finished_steps(load()) == 3


def test_nothing_is_done_before_the_first_step(load) -> None:
    assert finished_steps(load()) == 0


def test_the_same_config_and_data_change_nothing(load) -> None:
    save(load(), 6)
    preflight(load(), 1)
    assert events(load()) == {}


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda prefix: tokens(prefix, seed=1, documents=120), "digest of .idx"),
        (lambda prefix: tokens(prefix, seed=1), "sample of .bin"),
    ],
)
def test_other_tokens_behind_a_path_are_refused_or_recorded(load, tmp_path: Path, change: Any, what: str) -> None:
    save(load(), 6)
    change(tmp_path / "a")
    with pytest.raises(UserError, match=r"data.on_change=accept") as raised:
        preflight(load("train.steps=9", "optim.on_jump=accept"), 1)
    assert "source 1" in str(raised.value) and f"{tmp_path}/a" in str(raised.value) and what in str(raised.value)
    told = events(load("data.on_change=accept"))
    assert what in told["data"] and "accepted" in told["data"]


def test_another_held_out_set_is_told(load, tmp_path: Path) -> None:
    save(load(), 6)
    tokens(tmp_path / "held", seed=10)
    preflight(load(), 1)
    assert "held-out set is another than at step 6" in events(load())["data"]


def test_another_tokenizer_is_refused(load, tmp_path: Path) -> None:
    save(load(), 6)
    recorded = data_identity(load().data)
    with store.open_step(RunFolder.of(load()).checkpoints / "step-00000006") as checkpoint:
        for sets in ([{**recorded["sources"][0], "tokenizer": "other"}], recorded["sources"] * 2):
            with pytest.raises(UserError, match="the data are not those"):
                changes(checkpoint.manifest, load(), {**recorded, "sources": sets})
        with pytest.raises(UserError, match="data.tokenizer: None there, x here"):
            changes(checkpoint.manifest, load(), {**recorded, "tokenizer": "x"})


@pytest.mark.parametrize(
    "words, before, after",
    [
        (["train.steps=20"], "3.0e-04", "2.4e-03"),
        (["train.steps=20", "optim.schedule=constant"], "3.0e-04", "3.0e-03"),
        (["train.steps=20", "optim.min_lr_ratio=0.5"], "3.0e-04", "2.7e-03"),
        (["train.steps=20", "optim.warmup_steps=10"], "3.0e-04", "2.1e-03"),
    ],
)
def test_a_rate_that_jumps_wants_consent(load, words: list[str], before: str, after: str) -> None:
    save(load(), 6)
    line = f"learning rate {before} at step 6 -> {after} at step 7"
    with pytest.raises(UserError, match="optim.on_jump=accept") as raised:
        preflight(load(*words), 1)
    assert line in str(raised.value)
    preflight(load(*words, "optim.on_jump=accept"), 1)
    assert line in events(load(*words, "optim.on_jump=accept"))["schedule"]


@pytest.mark.parametrize(
    "first, words",
    [
        (["train.steps=1000"], ["train.steps=1010"]),  # the schedule's own shape, a little longer
        (["train.steps=1000", "optim.warmup_steps=900"], ["train.steps=1000", "optim.warmup_steps=905"]),
        (
            ["train.steps=30", "optim.schedule=wsd"],
            ["train.steps=40", "optim.schedule=wsd", "optim.decay_fraction=0.3"],
        ),
    ],
)
def test_another_schedule_that_moves_on_is_only_told(load, first: list[str], words: list[str]) -> None:
    save(load(*first), 6)
    preflight(load(*words), 1)
    told = events(load(*words))
    assert "at step 6 ->" in told["schedule"] and "accepted" not in told["schedule"]


def test_changed_keys_and_versions_are_told(load) -> None:
    meta = run_meta(load(), 1, "", data_identity(load().data))
    save(load(), 6, replace(meta, versions={"mindmoe": "0.0.1\x1b[2J", "mindspore": "2.9.0"}))
    told = events(load("observe.log_every=7"))
    assert "observe.log_every: 1 -> 7" in told["config"]
    assert "mindspore 2.9.0" in told["versions"] and "0.0.1" in told["versions"] and told["versions"].isprintable()


def test_a_key_that_came_later_is_no_difference(load) -> None:
    config = load()
    recorded = config.model_dump(mode="json")
    del recorded["optim"]["on_jump"], recorded["model"]["swiglu_limit"], recorded["moe"]["dispatch"]
    recorded["model"]["gone"] = 1
    assert differences(recorded, config) == ["model.gone: 1 -> None"]
    del recorded["model"]["gone"], recorded["optim"]["lr"]
    assert differences(recorded, config) == ["optim.lr: None -> 0.003"]


def test_a_checkpoint_that_records_config_dicts_still_loads(load) -> None:
    """What versions before the table of parameters wrote, without the keys that came later."""
    config = load()
    model = {"model": config.model.model_dump(mode="json"), "moe": {"num_experts": 4, "later": "unknown"}}
    del model["model"]["swiglu_limit"]
    save(config, 6, Meta(model=model, topology={"dp": 1}, config_digest="0" * 64, generation="", state={"seed": 0}))
    with store.open_step(RunFolder.of(config).checkpoints / "step-00000006") as checkpoint:
        check_identity(checkpoint.path, checkpoint.manifest, config)
        with pytest.raises(
            CheckpointError, match=r"\(model.hidden_size: 16 there, 32 here; .*F32 \[512, 16\] there, F32 "
        ):
            check_identity(checkpoint.path, checkpoint.manifest, load("model.hidden_size=32"))
    assert events(config) == {}
    with pytest.raises(UserError, match="optim.on_jump=accept"):
        events(load("train.steps=20"), before=config)


def test_another_model_is_named_before_anything_else(load, tmp_path: Path) -> None:
    step = save(load(), 6)
    shutil.copytree(step.parent, tmp_path / "runs" / "other" / "checkpoints")
    with pytest.raises(CheckpointError, match="another model .model.hidden_size: 16 there, 32 here"):
        preflight(load("name=other", "model.hidden_size=32", "train.steps=20"), 1)


@pytest.mark.parametrize("key", ["moe.balance.aux_coef=0.5", "train.global_batch_size=8", "optim.type=sgd"])
def test_what_is_no_parameter_makes_no_other_model(load, key: str) -> None:
    save(load(), 6)
    with store.open_step(RunFolder.of(load()).checkpoints / "step-00000006") as checkpoint:
        check_identity(checkpoint.path, checkpoint.manifest, load(key))
    assert key.partition("=")[0] in events(load(key))["config"]
