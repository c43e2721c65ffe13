"""Puts together what the ranks wrote and compares it with the run on one process (dry)."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LOSS, GRADIENT, WEIGHT = 1e-5, 1e-5, 1e-6
"""Largest differences that count as equal in fp32: of the loss [nats]; of a gradient, relative to its own norm (see
_norm); of what a rank holds of a weight, relative to that weight, both as root mean squares, or to the scale of initial
weights where that is larger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The largest differences of a layout, and where they are.

    Attributes:
        loss: absolute, over all steps [nats].
        gradient: of any parameter and step, relative to its norm; `gradient_at` names it.
        weight: at the end, relative (see WEIGHT); `weight_at` names it.
        element: of any single weight at the end, relative to the same; it is rounding and decides nothing.
        routing: assignments that differ, over all steps.
        missing: tensors of which no rank wrote some element.
    """

    loss: float
    gradient: float
    gradient_at: str
    weight: float
    weight_at: str
    element: float
    routing: int
    missing: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether the layout computes the same."""
        within = self.loss <= LOSS and self.gradient <= GRADIENT and self.weight <= WEIGHT
        return bool(within and self.routing == 0 and not self.missing)


def compare(baseline: Path, layout: Path, world: int, scale: float) -> Difference:
    """Compares the traces of a layout with those of one process.

    Args:
        baseline: folder with the trace of one process.
        layout: folder with the traces of the ranks.
        world: how many they are.
        scale: standard deviation of initial weights.
    """
    with np.load(baseline / "rank-0.npz") as file:
        wanted = {key: file[key] for key in file.files}
    whole = {key.rsplit("|", 1)[0]: value for key, value in wanted.items() if key[0] in "gp"}
    seen = {key: np.zeros(value.shape, bool) for key, value in whole.items()}
    squares = dict.fromkeys((key for key in whole if key.startswith("g.")), 0.0)
    weights = dict.fromkeys((key for key in whole if key.startswith("p|")), 0.0)
    loss, routing, element = 0.0, 0, 0.0
    known: dict[str, np.ndarray] = {}
    for rank in range(world):
        with np.load(layout / f"rank-{rank}.npz") as file:
            loss = max(loss, float(np.abs(file["loss"][:, 0] - wanted["loss"][:, 0]).max()))
            for key in file.files:
                if key.startswith("r."):
                    here = known.setdefault(key, np.full(file[key].shape, -1, np.int32))
                    np.copyto(here, file[key], where=file[key] >= 0)
                elif key != "loss":
                    name, _, offset = key.rpartition("|")
                    box = _box(offset, file[key].shape)
                    apart = (file[key] - whole[name][box]).astype(np.float64)
                    if name in squares:
                        apart[seen[name][box]] = 0.0  # a replica wrote it before
                        squares[name] += float((apart**2).sum())
                    else:
                        reference = max(scale, _rms(whole[name]))
                        weights[name] = max(weights[name], _rms(apart) / reference)
                        if not name.startswith("p|adam_"):
                            element = max(element, float(np.abs(apart).max(initial=0.0)) / reference)
                    seen[name][box] = True
    for key, ids in known.items():
        routing += int((ids != wanted[key]).sum())
    norms = {key: float(np.sqrt(square)) / max(_norm(key, whole), 1e-30) for key, square in squares.items()}
    model = {key: value for key, value in weights.items() if not key.startswith("p|adam_")}
    gradient_at, weight_at = max(norms, key=norms.__getitem__), max(model, key=model.__getitem__)
    missing = [key for key, mask in seen.items() if not mask.all()]
    missing += [key for key in wanted if key.startswith("r.") and (key not in known or (known[key] < 0).any())]
    return Difference(
        loss=loss,
        gradient=norms[gradient_at],
        gradient_at=gradient_at.split("|")[1],
        weight=model[weight_at],
        weight_at=weight_at.split("|")[1],
        element=element,
        routing=routing,
        missing=tuple(sorted({key.split("|")[-1] for key in missing})),
    )


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
