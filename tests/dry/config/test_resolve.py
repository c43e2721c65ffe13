"""Checks across sections, and the layout of a run on a number of cards."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from mindmoe.config.load import load_config
from mindmoe.config.run import RunConfig, resolve
from mindmoe.host.errors import ConfigError
from mindmoe.moe.config import MoeConfig
from mindmoe.moe.router.topk import TopK

Write = Callable[..., str]


@pytest.fixture
def load(write: Write, valid: str) -> Callable[..., RunConfig]:
    path = write(valid)
    return lambda *overrides: load_config(path, overrides)


@pytest.mark.parametrize(
    ("overrides", "cards", "dp"),
    [
        ((), 1, 1),
        ((), 2, 2),
        (("train.global_batch_size=24",), 12, 12),
        (("parallel.tp=2",), 4, 2),
        (("parallel.tp=2", "parallel.pp=2", "parallel.cp=2"), 8, 1),
        (("parallel.cp=4", "parallel.ep=8"), 8, 2),
        (("parallel.dp=2", "parallel.ep=2"), 2, 2),
    ],
)
def test_resolve_fills_data_parallel(load: Any, overrides: tuple[str, ...], cards: int, dp: int) -> None:
    run = load(*overrides)
    resolved = resolve(run, cards)
    assert resolved.parallel.dp == dp
    assert resolved == run.model_copy(update={"parallel": resolved.parallel})
    assert resolve(resolved, cards) == resolved


@pytest.mark.parametrize(
    ("overrides", "cards", "problems"),
    [
        ((), 0, ["cards=0 must be at least 1: give the number of devices of the run"]),
        (("parallel.dp=2",), 0, ["cards=0 must be at least 1: give the number of devices of the run"]),
        (
            ("parallel.tp=2", "parallel.pp=2"),
            6,
            ["cards=6 must be a multiple of tp*pp*cp=4 (2*2*1): use 8 cards, or lower one of the degrees"],
        ),
        (
            ("parallel.tp=2", "parallel.cp=2"),
            3,
            ["cards=3 must be a multiple of tp*pp*cp=4 (2*1*2): use 4 cards, or lower parallel.tp=2 and parallel.cp=2"],
        ),
        (
            ("parallel.dp=2",),
            4,
            ["cards=4 must equal dp*tp*pp*cp=2 with parallel.dp=2: set parallel.dp=4 or auto"],
        ),
        (
            ("parallel.ep=4",),
            2,
            ["parallel.ep=4 must divide dp*cp=2 (2*1): lower parallel.ep or raise parallel.dp"],
        ),
        (
            (),
            3,
            [
                "train.global_batch_size=4 must be a multiple of train.micro_batch_size * parallel.dp = 2 * 3 = 6: "
                "set train.global_batch_size=6, or lower train.micro_batch_size"
            ],
        ),
    ],
)
def test_impossible_layouts_name_the_divisor(load: Any, overrides: tuple[str, ...], cards: int, problems: Any) -> None:
    with pytest.raises(ConfigError) as info:
        resolve(load(*overrides), cards)
    assert info.value.problems == problems


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("parallel.tp=3",), "override parallel.tp=3: must divide model.num_key_value_heads=2 or be a multiple of it"),
        (("parallel.tp=3",), "override parallel.tp=3: must divide model.vocab_size=64: lower parallel.tp"),
        (
            ("parallel.cp=3",),
            "override parallel.cp=3: must divide train.seq_length=8 into 2*cp*tp=6 equal parts: lower",
        ),
        (("parallel.pp=3",), "override parallel.pp=3: must be at most model.num_hidden_layers=2: lower parallel.pp"),
        (("parallel.ep=3",), "override parallel.ep=3: must divide moe.num_experts=8: lower parallel.ep"),
        (("parallel.ep=2", "moe=null"), "parallel.ep=2: must be 1 without experts: set parallel.ep=1 or add a moe"),
        (("parallel.ep=4", "parallel.dp=2"), "parallel.ep=4: must divide dp*cp=2 (2*1): lower parallel.ep or raise"),
        (
            ("optim.schedule=wsd", "optim.warmup_steps=9"),
            "optim.decay_fraction=0.2 of train.steps=10 must leave room for optim.warmup_steps=9: lower",
        ),
        (("train.global_batch_size=3",), "train.global_batch_size=3: must be a multiple of micro_batch_size=2"),
    ],
)
def test_sections_must_fit_each_other(load: Any, overrides: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError) as info:
        load(*overrides)
    assert any(problem in line for line in info.value.problems), info.value.problems


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.seq_length=32",),  # equal to max_position_embeddings
        ("optim.warmup_steps=10",),  # all of the run
        ("optim.schedule=wsd", "optim.warmup_steps=8"),  # exactly the room that decay leaves
        ("parallel.pp=2",),
        ("parallel.ep=8",),  # the data axis is not known yet
    ],
)
def test_limits_are_inclusive(load: Any, overrides: tuple[str, ...]) -> None:
    assert load(*overrides)


def test_a_run_built_in_python_is_checked_too(load: Any) -> None:
    data = load().model_dump()
    data["train"]["seq_length"] = 64
    with pytest.raises(ValidationError, match="train.seq_length=64 must be at most"):
        RunConfig.model_validate(data)


def test_groups_of_experts_must_make_sense() -> None:
    with pytest.raises(ValidationError, match="must leave 2 of num_experts=4 in a group"):
        MoeConfig(num_experts=4, num_experts_per_tok=1, router=TopK(num_groups=4, topk_groups=1))
    with pytest.raises(ValidationError, match="must be at most the 2 experts of router.topk_groups=1 groups"):
        MoeConfig(num_experts=4, num_experts_per_tok=3, router=TopK(num_groups=2, topk_groups=1))
    assert MoeConfig(num_experts=4, num_experts_per_tok=2, router=TopK(num_groups=2, topk_groups=1))
