"""Every number of every section has two bounds, those of what will hold it, and no truth value passes for a number."""

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo

import mindmoe
from mindmoe.config.load import load_config
from mindmoe.config.schema import FP32_MAX, Section
from mindmoe.host.errors import ConfigError
from mindmoe.lab.dmr.config import Dmr, FeaturesConfig
from mindmoe.lab.tune.config import ALPHA, AUX, BIAS, LEVELS, TAU
from mindmoe.moe.config import BalanceConfig

Write = Callable[..., str]

for _module in pkgutil.walk_packages(mindmoe.__path__, "mindmoe."):
    if _module.name.endswith(".config") or _module.name in ("mindmoe.plan.hardware", "mindmoe.data.manifest"):
        importlib.import_module(_module.name)


def _sections(root: type[Section] = Section) -> Iterator[type[Section]]:
    for section in root.__subclasses__():
        if section.__module__.startswith("mindmoe."):
            yield section
        yield from _sections(section)


SECTIONS = sorted(set(_sections()), key=lambda section: section.__qualname__)
FIELDS = [(section, name) for section in SECTIONS for name in section.model_fields]


def _numbers(annotation: Any, rules: list[Any]) -> Iterator[tuple[type, list[Any]]]:
    """Every number inside a type, with the rules that stand beside it."""
    if get_origin(annotation) is Annotated:
        base, *more = get_args(annotation)
        yield from _numbers(base, rules + more)
    elif annotation in (int, float):
        yield annotation, rules
    elif get_origin(annotation) is Literal:
        assert all(isinstance(choice, str) for choice in get_args(annotation)), "False passes for 0, and 1.0 for 1"
    else:
        for inner in get_args(annotation):
            yield from _numbers(inner, [])


def _bounds(rules: list[Any]) -> tuple[float, float]:
    """The tightest lower and upper bound; infinite where there is none."""
    flat = [part for rule in rules for part in (rule.metadata if isinstance(rule, FieldInfo) else [rule])]
    low = [getattr(part, "ge", getattr(part, "gt", -math.inf)) for part in flat]
    high = [getattr(part, "le", getattr(part, "lt", math.inf)) for part in flat]
    return max([-math.inf, *low]), min([math.inf, *high])


def test_the_sections_are_found() -> None:
    names = {section.__name__ for section in SECTIONS}
    assert {"RunConfig", "Dmr", "PrepareConfig", "AblateConfig", "TuneConfig", "Hardware", "DatasetManifest"} <= names
    assert sum(1 for section, name in FIELDS for _ in _numbers(*_field(section, name))) > 150


def _field(section: type[Section], name: str) -> tuple[Any, list[Any]]:
    field = section.model_fields[name]
    return field.annotation, list(field.metadata)


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_number_has_two_bounds(section: type[Section], name: str) -> None:
    for kind, rules in _numbers(*_field(section, name)):
        low, high = _bounds(rules)
        assert low >= -FP32_MAX and (high < 2**63 if kind is int else high <= FP32_MAX)


@pytest.mark.parametrize(("section", "name"), [(s, n) for s, n in FIELDS if any(True for _ in _numbers(*_field(s, n)))])
def test_what_the_type_cannot_hold_is_refused(section: type[Section], name: str) -> None:
    field = section.model_fields[name]
    one: Any = create_model("One", __base__=Section, value=(field.annotation, field))
    for value in (1e308, -1e308, 1e39, 2**130, 1e-50, -1e-50, -0.0, math.nan, math.inf, True, False):
        with pytest.raises(ValidationError):
            one.model_validate({"value": value})
            pytest.fail(f"{value} was taken")


@pytest.mark.parametrize(
    ("key", "section"), [(TAU, Dmr), (ALPHA, FeaturesConfig), (AUX, BalanceConfig), (BIAS, BalanceConfig)]
)
def test_levels_of_tuning_have_the_bounds_of_their_key(key: str, section: type[Section]) -> None:
    adapter: TypeAdapter[Any] = LEVELS[key]
    field = section.model_fields[key.rpartition(".")[2]]
    for bound in _bounds(field.metadata):
        assert adapter.validate_python(bound) == bound
        for beyond in (bound * 1.01 + 1e-9, bound * 0.99 - 1e-9):
            inside = _bounds(field.metadata)[0] <= beyond <= _bounds(field.metadata)[1]
            if inside:
                adapter.validate_python(beyond)
            else:
                with pytest.raises(ValidationError):
                    adapter.validate_python(beyond)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("parallel.zero=false", "must be a whole number: write a whole number"),
        ("parallel.zero=4", "must be at most 3: lower it"),
        ("parallel.zero=1.0", "must be a whole number: write 1"),
        ("launch.threads=100000", "must be at most 1024: lower it"),
        ("model.hidden_size=2147483647", "must be at most 1048576: lower it"),
        ("train.steps=3000000000", "must be at most 2147483647: lower it"),
        ("optim.eps=1e-50", "must be at least 1e-30: raise it"),
        (
            "moe.balance.z_coef=1e-50",
            "must be 0 or at least 1.18e-38, for fp32 holds nothing between: change it",
        ),
        ("optim.clip_norm=-0.0", "must not be minus zero: change it"),
        ("launch.hang_timeout=1ms", "must be 0 or at least 1 s: change it"),
        ("checkpoint.min_free=1e30GiB", "must be at most 9.22337e+18: lower it"),
        (
            "optim.weight_decay=1e6",
            "optim.weight_decay=1000000.0 times lr=0.0003 must be at most 1, or a step takes more from a weight than "
            "there is: lower weight_decay",
        ),
        (
            "train.global_batch_size=2000000000",
            "must be, times train.seq_length=8, at most 2147483647 tokens: lower one of them",
        ),
        (
            "moe.dispatch={kind: capacity, capacity_factor: 1e5}",
            "moe.dispatch.capacity_factor=1e5: must be at most 10000: lower it",
        ),
        (
            "model.hidden_size=1000000",
            "must make, with the other sizes, at most 1e+15 parameters, not 4.8e+16: lower model.hidden_size, "
            "model.intermediate_size or moe.num_experts",
        ),
    ],
)
def test_the_refusal_is_a_sentence(write: Write, valid: str, override: str, problem: str) -> None:
    with pytest.raises(ConfigError) as info:
        wide = (
            ["model.intermediate_size=1000000", "moe.num_experts=8000"]
            if override.endswith("hidden_size=1000000")
            else []
        )
        load_config(write(valid), [override, *wide])
    assert info.value.problems == [f"override {override}: {problem}"]


def test_rows_of_experts_fit_int32(write: Write, valid: str) -> None:
    batch = ["train.global_batch_size=200000000", "train.micro_batch_size=200000000"]
    load_config(write(valid), [*batch, "train.seq_length=1"])
    with pytest.raises(ConfigError, match="and 8 expert rows a token, at most 2147483647 rows"):
        load_config(write(valid), [*batch, "moe.dispatch={kind: capacity, capacity_factor: 4}"])


def test_levels_of_tuning_are_held_to_the_bounds_of_their_key(write: Write, valid: str) -> None:
    words = ["moe.balance={aux_coef: 0.01}", "optim.schedule=wsd"]
    with pytest.raises(ConfigError, match="aux_coef cannot be 1e.30, which must be less than or equal to 10000"):
        load_config(write(valid), [*words, "qea={space: {moe.balance.aux_coef: [0.01, 1e30]}}"])
    load_config(write(valid), [*words, "qea={space: {moe.balance.aux_coef: [0.01, 0.1]}}"])
