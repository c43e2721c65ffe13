"""Whatever a file or an override holds: a config, or a ConfigError, after a bounded number of calls."""

import contextlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindmoe.config.load import dump_config, load_config
from mindmoe.config.run import RunConfig
from mindmoe.host.errors import ConfigError, UserError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SHAPE = (CONFIGS / "model" / "quickstart.yaml").read_text()
PRESET = (CONFIGS / "quickstart.yaml").read_text().replace("include: model/quickstart.yaml", "") + SHAPE
ODD = [
    *("null", "~", "yes", "1e-5", "-1", "0", "1.5", "1e400", ".nan", ".inf", "''", '"\\0"', "[]", "{}", "[[]]", "auto"),
    *("12:30:45", "10GiB", "-3s", "9" * 30, "9" * 70, "0x10", "&a", "*a", "!!int 3", "!x", "|", ">", "- 1", "a: b"),
    *("? x", "<<", "[", "}", "'", '"', "#", "%YAML 1.1", "---", "...", "\t", "\u2028", "\x85", "\ufeff", "\x1b", "a=b"),
]
CALLS, LARGE = 100_000, 400_000  # ordinary configs make up to 40,000 calls, the largest sections 270,000
FEW = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _load(work: Any, text: str | bytes, folder: Path, overrides: Sequence[str] = ()) -> RunConfig | None:
    """The config, or None when it was refused; anything else that happens fails the test."""
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    run, refused = None, None
    with work() as done:
        try:
            run = load_config(path, overrides)
        except UserError as error:
            refused = error
    assert done.calls < CALLS
    if refused is not None:
        assert isinstance(refused, ConfigError) or "is not UTF-8" in str(refused)
        assert all(line.isprintable() for line in str(refused).splitlines())
    return run


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """The first load builds pydantic's validators, which no later one pays for."""
    load_config(CONFIGS / "quickstart.yaml")


@FEW
@given(data=st.binary(max_size=300))
def test_random_bytes(work: Any, tmp_path: Path, data: bytes) -> None:
    _load(work, data, tmp_path)


@FEW
@given(text=st.text(st.sampled_from("ab:-,[]{}&*!|>'\"#%@?~. \n\t01e_<=\\\u00e9"), max_size=80))
def test_random_yaml_like_text(work: Any, tmp_path: Path, text: str) -> None:
    _load(work, text, tmp_path)


@FEW
@given(seed=st.integers(0, 2**32), edits=st.integers(1, 6))
def test_mutated_presets(work: Any, tmp_path: Path, seed: int, edits: int) -> None:
    run = _load(work, _mutated(random.Random(seed), edits), tmp_path)
    if run is not None:  # what was accepted is a config like any other
        assert _load(work, dump_config(run), tmp_path) == run


def _mutated(rng: random.Random, edits: int) -> str:
    """The preset with values swapped, lines moved, doubled or dropped, and characters changed."""
    lines = PRESET.splitlines()
    for _ in range(edits):
        row = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                lines[row] = f"{lines[row].partition(':')[0]}: {rng.choice(ODD)}"
            case 1:
                lines.insert(rng.randrange(len(lines)), lines[row])
            case 2:
                del lines[row]
            case 3:
                lines[row] = rng.choice(["", " ", "  ", "    "]) + lines[row].strip()
            case 4:
                column = rng.randrange(len(lines[row]) + 1)
                lines[row] = lines[row][:column] + rng.choice(ODD) + lines[row][column + rng.randrange(2) :]
            case _:
                lines[row] = lines[row].replace(rng.choice("aeiou_:"), rng.choice("aeiou_: "), 1)
    return "\n".join(lines)


def _paths(data: dict[str, object], prefix: str = "") -> list[str]:
    found = []
    for key, value in data.items():
        found.append(prefix + key)
        found += _paths(value, f"{prefix}{key}.") if isinstance(value, dict) else []
    return found


KEYS = [*_paths(load_config(CONFIGS / "quickstart.yaml").model_dump()), "data.sources.0", "data.sources.0.weight"]
OVERRIDES = st.builds(lambda key, value: f"{key}={value}", st.sampled_from(KEYS), st.sampled_from(ODD) | st.text())


@FEW
@given(overrides=st.lists(OVERRIDES | st.text(max_size=20), max_size=4))
def test_odd_overrides(work: Any, tmp_path: Path, valid: str, overrides: list[str]) -> None:
    _load(work, valid, tmp_path, overrides)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_takes_or_refuses_an_odd_value(work: Any, tmp_path: Path, valid: str, key: str) -> None:
    for value in ODD[::3]:
        _load(work, valid, tmp_path, [f"{key}={value}"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("layer_types: alternating", "layer_types: [" + "x, " * 4900 + "]"),
        ("layer_types: alternating", "layer_types: [" + "full_attention, " * 4700 + "]"),
        ("sources: data/quickstart", "sources: [" + "{pth: x}, " * 1600 + "]"),
        ("sources: data/quickstart", "sources: [" + "x, " * 4700 + "]"),
        ("sources: data/quickstart", "sources: '" + "/" * 900_000 + "'"),
        ("name: quickstart", "name: " + "a" * 900_000),
        ("steps: 400", "steps: " + "9" * 900_000),
        ("lr: 3e-3", "lr: 1e" + "9" * 900_000),
        ("seed: 0", "".join(f"learning_rate_of_{i}: 1\n" for i in range(2300))),
        ("seed: 0", "k" * 900 + ": 1"),
    ],
)
def test_large_sections_take_a_bounded_number_of_calls(work: Any, tmp_path: Path, old: str, new: str) -> None:
    text = PRESET + "\nseed: 0\n"
    assert text.count(old) >= 1
    path = tmp_path / "run.yaml"
    path.write_text(text.replace(old, new))
    with work() as done, contextlib.suppress(ConfigError):
        load_config(path)
    assert done.calls < LARGE
