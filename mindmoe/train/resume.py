"""What a run does otherwise than the one whose checkpoint it continues: refused without consent, or told (dry)."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue, ValidationError

from mindmoe.checkpoint.identity import versions
from mindmoe.checkpoint.manifest import Manifest
from mindmoe.config.load import flat
from mindmoe.config.run import RunConfig
from mindmoe.config.schema import Section
from mindmoe.host.errors import UserError
from mindmoe.host.files import shown
from mindmoe.optim.config import OptimConfig
from mindmoe.optim.schedule import learning_rate

_JUMP = 0.1  # of the rate, beyond what a schedule itself moves in a step
_CONSENT = ("data.on_change", "optim.on_jump")  # keys that only say what may change

Event = tuple[str, str]
"""Name and message."""


def changes(
    manifest: Manifest, config: RunConfig, data: Mapping[str, Any], before: RunConfig | None = None
) -> list[Event]:
    """What continuing a checkpoint changes, as events of the run.

    Args:
        manifest: of the checkpoint.
        config: the resolved run.
        data: what it reads, from `data_identity`.
        before: the config of the run folder, for checkpoints that do not record theirs.

    Raises:
        UserError: the data are others, or the learning rate jumps, and the config does not accept that.
    """
    # Imported checkpoints and those of earlier versions carry no config: then the run folder speaks for them.
    recorded = manifest.meta.config or (before.model_dump(mode="json") if before is not None else {})
    events = [*_data_events(manifest, config, data)]
    if recorded and manifest.step and (message := _schedule(recorded, config, manifest.step)):
        events.append(("schedule", message))
    if recorded and (differ := differences(recorded, config)):
        events.append(("config", f"changed since step {manifest.step}: {'; '.join(differ)}"))
    there, here = manifest.meta.versions, versions()
    if there and there != here:
        written = ", ".join(f"{name} {shown(str(there.get(name)))}" for name in here)
        now = ", ".join(f"{name} {number}" for name, number in here.items())
        events.append(("versions", f"step {manifest.step} was written by {written}; it goes on with {now}"))
    return events


def differences(recorded: Mapping[str, Any], config: RunConfig) -> list[str]:
    """The keys that a recorded config sets otherwise, as `key: there -> here`.

    A key that is absent there and has its default here is none: it came later.
    """
    there, here = flat(dict(recorded)), flat(config.model_dump(mode="json"))
    found = []
    for key in sorted(there.keys() | here.keys()):
        came_later = key not in there and here[key] == _default(config, key)
        if there.get(key) != here.get(key) and not came_later and key not in _CONSENT:
            found.append(f"{shown(key)}: {shown(str(there.get(key)))} -> {shown(str(here.get(key)))}")
    return found


def _default(config: RunConfig, key: str) -> Any:
    """The default of a dotted key, beside the values that are set around it."""
    section: Any = config
    *parents, name = key.split(".")
    for parent in parents:
        section = getattr(section, parent, None)
    fields = type(section).model_fields if isinstance(section, Section) else {}
    return fields[name].get_default(call_default_factory=True) if name in fields else None


def _data_events(manifest: Manifest, config: RunConfig, data: Mapping[str, Any]) -> Iterator[Event]:
    """The sets that differ from those that a checkpoint was trained on; none are known of an imported one."""
    recorded = manifest.meta.data
    differ = []
    names = [source.path for source in config.data.sources]
    there, here = recorded.get("sources"), data["sources"]
    if isinstance(there, list):
        if len(there) != len(here):
            differ.append(f"{len(there)} sources there, {len(here)} here")
        # `strict=False`: a different number of sources is told above, and those that pair up are still compared.
        for number, (name, one, two) in enumerate(zip(names, there, here, strict=False), 1):
            if facts := _facts(one, two):
                differ.append(f"source {number} ({shown(name, 200)}): {facts}")
    if "tokenizer" in recorded and recorded["tokenizer"] != data["tokenizer"]:
        differ.append(f"data.tokenizer: {shown(str(recorded['tokenizer']))} there, {data['tokenizer']} here")
    if differ:
        # Other training data are another run, unless that is accepted; another held-out set only changes what is
        # measured.
        what = f"the data are not those that step {manifest.step} was trained on ({'; '.join(differ)})"
        if config.data.on_change == "refuse":
            raise UserError(
                what, "restore them, set name=... for a new run, or continue with these by data.on_change=accept"
            )
        yield "data", f"{what}; accepted by data.on_change"
    if "valid" in recorded and (facts := _facts(recorded["valid"], data["valid"])):
        yield "data", f"the held-out set is another than at step {manifest.step}: {facts}"


def _facts(there: JsonValue, here: Mapping[str, Any]) -> str:
    """What differs between the identities of two sets."""
    if not isinstance(there, dict):
        return "unknown there"
    names = {"split": "split", "idx": "digest of .idx", "bin_bytes": "bytes of .bin", "bin_sample": "sample of .bin"}
    names["tokenizer"] = "tokenizer"
    return ", ".join(
        f"{name} {shown(str(there.get(key)))} there, {here.get(key)} here"
        for key, name in names.items()
        if there.get(key) != here.get(key)
    )


def _schedule(recorded: Mapping[str, Any], config: RunConfig, done: int) -> str:
    """The learning rate before and after, where it follows another schedule from here on; empty where it does not.

    Raises:
        UserError: it jumps, and the config does not accept that.
    """
    try:
        optim, steps = OptimConfig.model_validate(recorded["optim"]), recorded["train"]["steps"]
    except (ValidationError, KeyError, TypeError):
        return ""
    total = config.train.steps
    if type(steps) is not int or steps < 1 or done >= total:
        return ""
    # The rate of the last step done and of the next one, by the old schedule and then by the new one.
    last, planned = (learning_rate(optim, step, steps) for step in (done - 1, done))
    earlier, rate = (learning_rate(config.optim, step, total) for step in (done - 1, done))
    # The same shape over the same number of steps gives the same rates: nothing to tell.
    if (steps, *_shape(optim)) == (total, *_shape(config.optim)):
        return ""
    message = f"learning rate {last:.1e} at step {done} -> {rate:.1e} at step {done + 1}"
    # Either schedule moves by itself from step to step, as in a warm-up; only what goes beyond that is a jump.
    own = max(abs(planned - last), abs(rate - earlier))
    if abs(rate - last) - own <= _JUMP * last:
        return message
    if config.optim.on_jump == "refuse":
        raise UserError(
            f"the schedule is not that of step {done}, and the rate would jump: {message}",
            "continue with the schedule of before, set name=... for a new run, or accept the jump by "
            "optim.on_jump=accept",
        )
    return f"{message}; the jump is accepted by optim.on_jump"


def _shape(optim: OptimConfig) -> tuple[object, ...]:
    """What a schedule follows from, beside the number of steps."""
    return optim.lr, optim.min_lr_ratio, optim.warmup_steps, optim.schedule, optim.decay_fraction
