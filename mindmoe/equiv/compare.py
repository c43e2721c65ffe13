"""Puts together what the ranks wrote and compares it with the run on one process (dry)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LOSS, GRADIENT, WEIGHT, TIE = 1e-5, 1e-5, 1e-6, 1e-5
"""Largest differences that count as equal in fp32: of the loss [nats]; of a gradient, relative to its own norm (see
_norm); of what a rank holds of a weight, relative to that weight, both as root mean squares, or to the scale of initial
weights where that is larger; and of a router's logit, relative to the root mean square of the logits of its token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The largest differences of a layout, and where they are.

    Attributes:
        steps: that loss, gradients and routing were compared in as a whole: all but those that a tie parted.
        loss: absolute, over those steps [nats]; None where there are none.
        gradient: of any parameter and of those steps, relative to its norm; `gradient_at` names it.
        weight: at the end, relative (see WEIGHT); `weight_at` names it. None where a tie parted the last step.
        element: of any single weight at the end, relative to the same; it is rounding and decides nothing.
        routing: assignments that differ, over all steps, ties left out.
        ties: tokens of a layer that have other experts, where rounding decides between them.
        missing: tensors of which no rank wrote some element.
        ops: name of the op set.
    """

    steps: int
    loss: float | None
    gradient: float | None
    gradient_at: str
    weight: float | None
    weight_at: str
    element: float | None
    routing: int
    ties: int
    missing: tuple[str, ...]
    ops: str

    @property
    def equal(self) -> bool:
        """Whether the layout computes the same, in at least one step."""
        if self.loss is None or self.gradient is None or self.routing or self.missing:
            return False
        return self.loss <= LOSS and self.gradient <= GRADIENT and (self.weight is None or self.weight <= WEIGHT)

    @property
    def verdict(self) -> str:
        """In words."""
        nothing = not (self.steps or self.routing or self.missing)
        return "equal" if self.equal else "NOT COMPARED" if nothing else "DIFFERS"


def compare(baseline: Path, layout: Path, world: int, scale: float) -> Difference:
    """Compares the traces of a layout with those of one process.

    Args:
        baseline: folder with the trace of one process.
        layout: folder with the traces of the ranks.
        world: how many they are.
        scale: standard deviation of initial weights.
    """
    with np.load(baseline / "rank-0.npz", allow_pickle=False) as file:
        wanted = {key: file[key] for key in file.files}
    known = _chosen(layout, world)
    routing, ties, parted = _routing(wanted, known)
    steps = len(wanted["loss"])
    whole = {key.rsplit("|", 1)[0]: value for key, value in wanted.items() if key[0] in "gp"}
    seen = {key: np.zeros(value.shape, bool) for key, value in whole.items()}
    squares = dict.fromkeys((key for key in whole if key.startswith("g.") and _step(key) not in parted), 0.0)
    weights = dict.fromkeys((key for key in whole if key.startswith("p|") and steps - 1 not in parted), 0.0)
    loss, element, op_set = 0.0, 0.0, ""
    for rank in range(world):
        with np.load(layout / f"rank-{rank}.npz", allow_pickle=False) as file:
            apart = np.delete(np.abs(file["loss"][:, 0] - wanted["loss"][:, 0]), sorted(parted))
            loss = _larger(loss, float(apart.max(initial=0.0)))
            op_set = str(file["ops"]) if "ops" in file.files else ""
            for key in (key for key in file.files if key[:2] in ("g.", "p|")):
                name, _, offset = key.rpartition("|")
                box = _box(offset, file[key].shape)
                apart = (file[key] - whole[name][box]).astype(np.float64)
                if name in squares:
                    apart[seen[name][box]] = 0.0  # a replica wrote it before
                    squares[name] += float((apart**2).sum())
                elif name in weights:
                    reference = max(scale, _rms(whole[name]))
                    weights[name] = _larger(weights[name], _rms(apart) / reference)
                    if not name.startswith("p|adam_"):
                        element = _larger(element, float(np.abs(apart).max(initial=0.0)) / reference)
                seen[name][box] = True
    norms = {
        key: _larger(0.0, float(np.sqrt(square)) / max(_norm(key, whole), 1e-30)) for key, square in squares.items()
    }
    model = {key: value for key, value in weights.items() if not key.startswith("p|adam_")}
    gradient_at, weight_at = (max(found, key=found.__getitem__, default="|") for found in (norms, model))
    missing = [key for key, mask in seen.items() if not mask.all()]
    missing += [key for key in wanted if key.startswith("r.") and (key not in known or (known[key] < 0).any())]
    return Difference(
        steps=steps - len(parted),
        loss=loss if len(parted) < steps else None,
        gradient=norms.get(gradient_at),
        gradient_at=gradient_at.split("|")[1],
        weight=model.get(weight_at),
        weight_at=weight_at.split("|")[1],
        element=element if model else None,
        routing=routing,
        ties=ties,
        missing=tuple(sorted({key.split("|")[-1] for key in missing})),
        ops=op_set,
    )


def _chosen(layout: Path, world: int) -> dict[str, np.ndarray]:
    """What the ranks together know of the chosen experts: (S, K) by key, -1 where nobody does."""
    known: dict[str, np.ndarray] = {}
    for rank in range(world):
        with np.load(layout / f"rank-{rank}.npz", allow_pickle=False) as file:
            for key in (key for key in file.files if key.startswith("r.")):
                ids = file[key]
                here = known.setdefault(key, np.full(ids.shape, -1, np.int32))
                np.copyto(here, ids, where=ids >= 0)
    return known


def _routing(wanted: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray]) -> tuple[int, int, set[int]]:
    """Assignments that differ, tokens of a layer with a tie that went the other way, and the steps which those parted.

    The order of the experts of a token means nothing. What follows a tie, deeper layers of that step first, is another
    right run: the layers of a step are compared up to the first with a tie.
    """
    layers: dict[tuple[int, int], list[str]] = {}
    for key in known:
        at = key.removeprefix("r.").split("|")[0].split(".")
        layers.setdefault((int(at[0]), int(at[1])), []).append(key)
    differing, ties, parted = 0, 0, set[int]()
    for step, layer in sorted(layers):
        if step in parted:
            continue
        for key in layers[step, layer]:
            gone, come, excused = _changed(wanted[key], known[key], wanted.get(f"u.{key.removeprefix('r.')}"))
            changed = (gone > 0) | (come > 0)
            differing += int(np.maximum(gone, come)[changed & ~excused].sum())
            if (changed & excused).any():
                ties += int((changed & excused).sum())
                parted.add(step)
    return differing, ties, parted


def _changed(
    wanted: np.ndarray, known: np.ndarray, undecided: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many experts of each token went and came, and whether rounding decides on all of them: (S) each.

    Args:
        wanted: (S, K) experts of the process alone.
        known: (S, K) of the layout, -1 where no rank knows.
        undecided: (S, E) whom rounding decides on; None where it decides on nobody.
    """
    width = 2 + max(int(wanted.max(initial=0)), int(known.max(initial=0)))
    before, after = (np.zeros((len(wanted), width), bool) for _ in range(2))
    for mask, ids in ((before, wanted), (after, known)):
        np.put_along_axis(mask, ids.astype(np.int64) + 1, True, 1)  # the first column takes what is unknown
    gone, come = before & ~after, after & ~before
    free = np.zeros(before.shape, bool)
    if undecided is not None:
        experts = undecided.shape[1]
        free[:, experts + 1 :] = True  # a slot that is used in one of the runs only
        free[:, 1 : experts + 1] = undecided[:, : width - 1]
    return gone.sum(1), come.sum(1), ~((gone | come) & ~free).any(1)


def _step(key: str) -> int:
    """The step of a gradient."""
    return int(key.removeprefix("g.").split("|")[0])


def _larger(a: float, b: float) -> float:
    """The larger; what is no number is further off than any."""
    return max(a, b) if math.isfinite(b) else math.inf


def _norm(key: str, whole: dict[str, np.ndarray]) -> float:
    """Norm of a gradient; of a bias that is one number, that of the map it belongs to, weight and bias together.

    One number is a sum over tokens that may cancel to nearly nothing, and then says nothing of the rounding in it.
    """
    squares = float(np.sum(np.square(whole[key], dtype=np.float64)))
    if whole[key].size == 1 and key.endswith(".bias"):
        squares += float(np.sum(np.square(whole[key.removesuffix("bias") + "weight"], dtype=np.float64)))
    return math.sqrt(squares)


def _rms(values: np.ndarray) -> float:
    """Root mean square; 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


def _box(offset: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
    starts = [int(start) for start in offset.split("_")] if offset else []
    return tuple(slice(start, start + size) for start, size in zip(starts, shape, strict=True))
