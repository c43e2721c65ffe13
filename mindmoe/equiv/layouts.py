"""Layouts as short words: `tp2,ep2` (dry)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from pydantic import ValidationError

from mindmoe.config.load import dump_config
from mindmoe.config.run import RunConfig, resolve
from mindmoe.host.errors import ConfigError, UserError

_NUMBERED = {"dp", "tp", "pp", "ep", "cp", "etp", "zero", "chunks", "node_size", "recompute_layers"}
_WORDS: Mapping[str, tuple[str, str, Any]] = {
    "ring": ("parallel", "cp_method", "ring"),
    "ulysses": ("parallel", "cp_method", "ulysses"),
    "all_gather": ("parallel", "dispatcher", "all_gather"),
    "all_to_all": ("parallel", "dispatcher", "all_to_all"),
    "two_hop": ("parallel", "dispatcher", "two_hop"),
    "gpipe": ("parallel", "schedule", "gpipe"),
    "1f1b": ("parallel", "schedule", "1f1b"),
    "interleaved": ("parallel", "schedule", "interleaved"),
    "zb_h1": ("parallel", "schedule", "zb_h1"),
    "selective": ("parallel", "recompute", "selective"),
    "full": ("parallel", "recompute", "full"),
    "dropless": ("dispatch", "kind", "dropless"),
    "capacity": ("dispatch", "kind", "capacity"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutRun:
    """A layout and the run that trains under it.

    Attributes:
        name: its words.
        world: ranks.
        config: the run, resolved on them.
        baseline: the same run on one process, resolved.
    """

    name: str
    world: int
    config: RunConfig
    baseline: RunConfig

    @property
    def baseline_key(self) -> str:
        """Equal for layouts that are compared with the same run."""
        return dump_config(self.baseline)


def parse_layout(text: str, config: RunConfig) -> LayoutRun:
    """The layout of some words, applied to a run that would be trained on one process.

    A data-parallel rank gets its share of the micro-batch, so that micro-batches are the same rows under any dp.

    Args:
        text: degrees such as `dp2`, words of the table above, and the layers of pipeline pieces such as `split1+3`,
            separated by commas.
        config: the run; its micro-batch is that of one process.

    Raises:
        UserError: an unknown word, or a layout that the run cannot have.
    """
    changed: dict[str, dict[str, Any]] = {"parallel": {}, "train": {}, "dispatch": {}}
    for word in filter(None, (word.strip() for word in text.split(","))):
        match = re.fullmatch(r"([a-z_]+)(\d+)", word)
        if match and match[1] in _NUMBERED:
            changed["parallel"][match[1]] = int(match[2])
        elif match := re.fullmatch(r"split(\d+(?:\+\d+)*)", word):
            changed["parallel"]["split"] = [int(layers) for layers in match[1].split("+")]
        elif word in _WORDS:
            section, key, value = _WORDS[word]
            changed[section][key] = value
        else:
            known = ", ".join(["split1+3 and the like", *sorted(f"{name}N" for name in _NUMBERED), *sorted(_WORDS)])
            raise UserError(f"layout {text!r} has the unknown word {word!r}", f"use {known}")
    degrees = changed["parallel"]
    world = prod(degrees.get(axis, 1) for axis in ("dp", "tp", "pp", "cp"))
    dp, micro = degrees.get("dp", 1), config.train.micro_batch_size
    if micro % dp:
        raise UserError(
            f"layout {text!r}: dp={dp} must divide train.micro_batch_size={micro}, whose rows it shares",
            f"set train.micro_batch_size={-(-micro // dp) * dp}",
        )
    changed["train"]["micro_batch_size"] = micro // dp
    run = _with(config, changed)
    alone = _with(config, {"parallel": {}, "train": {"mode": "pynative"}, "dispatch": changed["dispatch"]})
    return LayoutRun(name=text, world=world, config=resolve(run, world), baseline=resolve(alone, 1))


def _with(config: RunConfig, changed: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """The run with another layout and other values in some sections."""
    raw = config.model_dump()
    raw["parallel"] = dict(changed["parallel"])
    raw["train"] |= changed["train"]
    if raw["moe"] is not None:
        raw["moe"]["dispatch"] |= changed["dispatch"]
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError([problem["msg"].removeprefix("Value error, ") for problem in error.errors()]) from None
