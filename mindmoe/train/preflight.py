"""Everything that can be refused before a process is started or MindSpore imported (dry)."""

import os
import shutil
from functools import lru_cache
from pathlib import Path

import psutil

from mindmoe.checkpoint import store
from mindmoe.checkpoint.folder import list_steps, step_of
from mindmoe.checkpoint.identity import check_identity
from mindmoe.checkpoint.objects import SCHEME
from mindmoe.checkpoint.retention import complete_manifest
from mindmoe.config.run import RunConfig
from mindmoe.data.dataset import Split
from mindmoe.data.identity import data_identity
from mindmoe.data.loader import TokenBatches
from mindmoe.host.env import usable_cores
from mindmoe.host.errors import UserError
from mindmoe.host.files import shown
from mindmoe.models.gpt_oss.parameters import param_specs
from mindmoe.train.folder import RunFolder
from mindmoe.train.resume import changes

UNPRINTABLE = "a character that cannot be printed"


def preflight(config: RunConfig, local_world: int) -> tuple[TokenBatches, TokenBatches]:
    """Checks a resolved config against this machine, the data and the run folder.

    Args:
        config: the run.
        local_world: its ranks on this machine.

    Returns:
        the training and the held-out batches.

    Raises:
        UserError: what cannot work, each with its remedy.
    """
    if problems := [*path_problems(config), *machine_problems(config, local_world)]:
        raise UserError("; ".join(problems))
    return check_data(config)


def check_data(config: RunConfig) -> tuple[TokenBatches, TokenBatches]:
    """The training and held-out batches of a config that may continue what its run folder holds.

    Raises:
        UserError: the data are not there or do not fit, or the folder holds another run.
    """
    folder = RunFolder.of(config)
    folder.check_continues(config)
    batches = open_batches(config, "train"), open_held_out(config)
    # The newest complete step is the one that would be resumed, unless its content turns out to be damaged.
    for path in list_steps(folder.checkpoints):
        if (newest := complete_manifest(path)) is not None:
            check_identity(path, newest, config)
            changes(newest, config, data_identity(config.data), folder.recorded())
            break
    return batches


def doubts(config: RunConfig) -> list[str]:
    """What speaks against a config on this machine, where it may be the machine that is the wrong one.

    Raises:
        UserError: what cannot work on any machine.
    """
    if absurd := path_problems(config, only_absolute=True):
        raise UserError("; ".join(absurd))
    found = [*path_problems(config), *machine_problems(config, 1)]
    try:
        check_data(config)
    except UserError as error:
        found.append(str(error))
    return found


def path_problems(config: RunConfig, *, only_absolute: bool = False) -> list[str]:
    """Paths of a config that no machine can use: with unprintable characters, or outside the volume of its pods.

    Args:
        config: the run.
        only_absolute: leave out those that depend on the working folder.
    """
    data, durable = config.data, config.checkpoint.durable
    named = [("output_dir", config.output_dir), *(("data.sources", source.path) for source in data.sources)]
    named += [(f"data.{key}", path) for key in ("valid", "tokenizer") if (path := getattr(data, key)) is not None]
    if durable is not None and not durable.path.startswith(SCHEME):
        named.append(("checkpoint.durable.path", durable.path))
    problems = [f"{key}={shown(path)} holds {UNPRINTABLE}: rename it" for key, path in named if not path.isprintable()]
    if config.launch.kubernetes is None:
        return problems
    mount = os.path.normpath(config.launch.kubernetes.mount)
    for key, path in named:
        if only_absolute and not os.path.isabs(path):
            continue
        # Text alone is looked at: the volume of the pods need not be mounted on this machine.
        full = os.path.normpath(os.path.join(working_folder(), path))
        if os.path.commonpath([mount, full]) != mount:
            problems.append(
                f"{key}={shown(path, 200)} is {shown(full, 200)}, outside launch.kubernetes.mount={mount}, the volume "
                "that the pods share: move it there, or correct the mount"
            )
    return problems


def machine_problems(config: RunConfig, local_world: int) -> list[str]:
    """Why this machine cannot run some ranks of a config, each reason with its remedy.

    Args:
        config: the run.
        local_world: its ranks on this machine.
    """
    problems = []
    if config.train.device == "ascend" and (there := devices()) < local_world:
        problems.append(
            f"train.device=ascend needs {_counted(local_world, 'device')} here, and /dev/davinci* shows {there}: "
            "load the driver, pass the devices into the container, or set train.device=cpu"
        )
    if config.launch.threads > (cores := usable_cores()):
        problems.append(
            f"launch.threads={config.launch.threads} is more than the {_counted(cores, 'core')} of this machine: "
            "lower it, or set 0 to divide them among the ranks"
        )
    return problems + _memory(config, local_world) + _disk(config)


def devices() -> int:
    """Ascend devices that processes of this machine may use."""
    there = len(list(Path("/dev").glob("davinci[0-9]*")))
    # The variable can only narrow what is there.
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    return there if visible is None else min(there, len([word for word in visible.split(",") if word.strip()]))


def working_folder() -> Path:
    """The folder that relative paths begin at.

    Raises:
        UserError: it has been removed.
    """
    try:
        return Path.cwd()
    except OSError:
        raise UserError("the working folder has been removed", "change to one that is there") from None


def _memory(config: RunConfig, local_world: int) -> list[str]:
    """Whether weights and moments alone, were they spread over all ranks, are more than this machine has."""
    if config.train.device != "cpu":  # an accelerator has memory of its own, which the planner predicts
        return []
    at = config.parallel
    # As many ranks as the layout needs at least; those of this machine hold their share of the state.
    world = max(local_world, at.tp * at.pp * at.cp * (1 if at.dp == "auto" else at.dp))
    if (least := checkpoint_size(config) * local_world // world) <= (there := psutil.virtual_memory().total):
        return []
    return [
        f"weights and moments take {_size(least)} on {_counted(local_world, 'rank')}, and this machine has "
        f"{_size(there)} of memory: train a smaller model, or on more machines"
    ]


def _disk(config: RunConfig) -> list[str]:
    """Whether the disk of the checkpoints holds those that are kept."""
    rules, root = config.checkpoint, RunFolder.of(config).checkpoints
    size = checkpoint_size(config)
    try:
        # The folder may not exist yet: its nearest parent that does lies on the same disk.
        place = next(path for path in (root, *root.absolute().parents) if path.is_dir())
        disk = shutil.disk_usage(place)
        held = sum(file.stat().st_size for file in root.glob("step-*/*")) if root.is_dir() else 0
    except OSError as error:
        return [f"{root} cannot be reached: {error.strerror}: set output_dir to a folder that you may write"]
    # One more than the period says: the last step is saved as well.
    saves = 1 + config.train.steps // rules.every if rules.every else 1
    short = f"checkpoints of {_size(size)}, and the disk of {place} has"
    if not disk.total:  # a file system without blocks, such as those of the kernel
        return []
    if rules.keep_last * size > disk.total:
        return [
            f"checkpoint.keep_last={rules.keep_last} keeps {_size(rules.keep_last * size)} in {short} "
            f"{_size(disk.total)}: lower it, or set output_dir to a larger disk"
        ]
    # What earlier checkpoints of this run take is free for its later ones, which replace them.
    if (needed := min(rules.keep_last, saves) * size + rules.min_free) > disk.free + held:
        return [
            f"checkpoint.keep_last={rules.keep_last} and checkpoint.min_free need {_size(needed)} for {short} "
            f"{_size(disk.free)} free: lower checkpoint.keep_last, free some space, or set output_dir to a larger disk"
        ]
    return []


def checkpoint_size(config: RunConfig) -> int:
    """Size of a checkpoint: weights and moments in fp32 [bytes]."""
    moments = 2 if config.optim.type == "adamw" else 0
    specs = param_specs(config.model, config.moe).values()
    return sum(4 * spec.size * (1 + moments * spec.trainable) for spec in specs)


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**29 else f"{nbytes / 2**20:.1f} MiB"


def open_batches(config: RunConfig, split: Split) -> TokenBatches:
    """The batches of a split as the run sees them."""
    return TokenBatches(
        config.data,
        split,
        config.train.seq_length,
        config.train.global_batch_size,
        config.model.vocab_size,
        config.moe.router.hidden_domains if config.moe is not None else 0.0,
    )


def open_held_out(config: RunConfig) -> TokenBatches:
    """The held-out batches, at least one of them.

    Raises:
        UserError: the held-out set is shorter than a batch.
    """
    batches = open_batches(config, "valid")
    if batches.num_samples < config.train.global_batch_size:
        raise UserError(
            f"the held-out set has {batches.num_samples} sequences of train.seq_length={config.train.seq_length} "
            f"tokens, fewer than train.global_batch_size={config.train.global_batch_size}",
            "prepare more text, raise valid_fraction, or lower train.seq_length or the batch size",
        )
    return batches


def finished_steps(config: RunConfig) -> int:
    """The newest step of the run folder that counts.

    It does if its manifest is sound and all its files are there with their sizes: ranks that resume from it verify
    every byte and set it aside if it is damaged, and then it counts no more. The last step of a run, after which no
    one would look at it, counts only if every byte of it verifies here.
    """
    for path in list_steps(RunFolder.of(config).checkpoints):
        if not _is_complete(path, _files(path)):
            continue
        # Damage in the last step would otherwise pass for a finished run, with nothing left to load.
        if step_of(path) < config.train.steps or next(store.damage(path), None) is None:
            return step_of(path)
    return 0


def _files(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, size [bytes] and time of change of everything in a folder; nothing if it is none."""
    try:
        with os.scandir(path) as files:
            status = [(file.name, file.stat()) for file in files]
    except OSError:
        return ()
    return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in status)


@lru_cache(maxsize=16)
def _is_complete(path: Path, files: tuple[tuple[str, int, int, int], ...]) -> bool:
    """Whether a step seems whole; asked again about the same files, as a launcher does, it need not be read again."""
    return complete_manifest(path) is not None
