"""Writers to be tortured: ours, and what people use otherwise, each as its users would use it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindmoe.checkpoint import store
from mindmoe.checkpoint.folder import list_steps
from mindmoe.checkpoint.retention import Retention
from mindmoe.checkpoint.torture.state import meta

KEEP = 2  # steps that every writer keeps
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to save and to find the newest checkpoint again.

    Attributes:
        name: for the table.
        save: (root, step, tensors); returns once the library says it is saved. Older steps are deleted afterwards.
        find: root -> (step, tensors) of the newest one that the library loads, None if it loads none.
        newest: root -> the files of the newest step.
    """

    name: str
    save: Callable[[Path, int, Tensors], None]
    find: Callable[[Path], tuple[int, Tensors] | None]
    newest: Callable[[Path], list[Path]]


def ours() -> Contender:
    """The store of this package. Every save claims the folder anew, as a run that starts does."""

    def save(root: Path, step: int, tensors: Tensors) -> None:
        store.save(root, step, tensors, meta(store.claim(root)), Retention(keep_last=KEEP), 0)

    def find(root: Path) -> tuple[int, Tensors] | None:
        found = store.newest_valid(root)
        return (found.manifest.step, found.tensors) if found else None

    return Contender("mindmoe", save, find, lambda root: sorted(list_steps(root)[0].iterdir()))


def plain_safetensors() -> Contender:
    """`safetensors.numpy.save_file`, a file for each step."""
    from safetensors.numpy import load_file, save_file

    return _one_file_a_step("safetensors", ".safetensors", save_file, load_file)


def mindspore() -> Contender:
    """`mindspore.save_checkpoint` with its defaults, a file for each step."""
    import mindspore as ms

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("ME")]:
        logging.getLogger(name).disabled = True  # it reports every file that it was meant to find damaged

    def save(tensors: Tensors, path: Path) -> None:
        ms.save_checkpoint([{"name": name, "data": ms.Tensor(array)} for name, array in tensors.items()], str(path))

    def load(path: Path) -> Tensors:
        return {name: param.asnumpy() for name, param in ms.load_checkpoint(str(path)).items()}

    return _one_file_a_step("mindspore.save_checkpoint", ".ckpt", save, load)


def _one_file_a_step(
    name: str, suffix: str, write: Callable[[Tensors, Path], Any], read: Callable[[Path], Tensors]
) -> Contender:
    def steps(root: Path) -> list[Path]:
        return sorted(root.glob(f"step-*{suffix}"), reverse=True)

    def save(root: Path, step: int, tensors: Tensors) -> None:
        write(tensors, root / f"step-{step:08d}{suffix}")
        for old in steps(root)[KEEP:]:
            old.unlink()

    def find(root: Path) -> tuple[int, Tensors] | None:
        for path in steps(root):
            try:
                return int(path.stem.removeprefix("step-")), read(path)
            except Exception:  # whatever the library raises, its user falls back to the file before
                continue
        return None

    return Contender(name, save, find, lambda root: steps(root)[:1])


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "mindmoe": ours,
    "safetensors": plain_safetensors,
    "mindspore": mindspore,
}
