"""Hints beside unknown keys know what other trainers call them."""

from collections.abc import Callable

import pytest

from mindmoe.config.load import load_config
from mindmoe.config.problems import _known_keys
from mindmoe.config.run import RunConfig
from mindmoe.config.synonyms import _KEYS, SYNONYMS
from mindmoe.host.errors import ConfigError

KNOWN = set(_known_keys(RunConfig))


def test_every_synonym_leads_to_a_key_of_one_meaning() -> None:
    routers = {"moe.router.num_groups", "moe.router.topk_groups"}  # of one kind of router
    assert set(SYNONYMS.values()) <= KNOWN | routers
    assert len(SYNONYMS) == sum(len(names.split()) for names in _KEYS.values()), "a synonym stands twice"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.layers", "model.num_hidden_layers"),
        ("model.n_layers", "model.num_hidden_layers"),
        ("model.heads", "model.num_attention_heads"),
        ("moe.top_k", "moe.num_experts_per_tok"),
        ("model.topk", "moe.num_experts_per_tok"),
        ("optim.learning_rate", "optim.lr"),
        ("learning_rate", "optim.lr"),
        ("train.batch_size", "train.global_batch_size"),
        ("model.d_model", "model.hidden_size"),
        ("moe.n_experts", "moe.num_experts"),
        ("train.context-length", "train.seq_length"),
        ("model.vocab", "model.vocab_size"),
        ("train.max_steps", "train.steps"),
        ("optim.grad_clip", "optim.clip_norm"),
        ("train.seed", "seed"),
        ("parallel.tensor_model_parallel_size", "parallel.tp"),
        ("train.Train_Iters", "train.steps"),
        ("moe.n_routed_experts", "moe.num_experts"),
    ],
)
def test_the_hint_names_the_key(write: Callable[..., str], valid: str, key: str, meant: str) -> None:
    with pytest.raises(ConfigError) as info:
        load_config(write(valid), [f"{key}=1"])
    assert info.value.problems == [f"override {key}=1: unknown key; did you mean {meant}?"]
