"""A trace: the numbers of a short run, where they were made, and how far another processor may be from them (dry).

**Exactly.** On the same kind of processor, with the same MindSpore, NumPy and compiler and one thread, every number
and every bit of the state at the end is the same.

**Within bounds.** Elsewhere sums run in another order, and nothing but rounding differs. A sum of N terms of one sign
carries an error of about sqrt(N) roundings; N is at most 128 here, and a dozen such sums lie between a weight and
the loss, so a step differs by about sqrt(12 * 128) = 40 roundings of 2^-24: NOISE["fp32"] = 2^-18. With bf16 operands a
value near the middle between two neighbours rounds the other way. It then moves by 2^-8 relative, and errors of
2^-24 * sqrt(128) lead to that in one value of 2^12: as root mean square 2^-14 = NOISE["bf16"]. What such noise does to
a run over 20 steps is no formula, as Adam and the choice of experts amplify it, so it is measured when a trace is made:
the run is repeated twice with every weight multiplied by 1 + NOISE * u before every step, u uniform in [-1, 1]. The
bound of a figure is HEADROOM times the largest difference that this made up to that step, and never below FLOOR. An
assignment at a tie may fall the other way where no noise made it; from such a step on the run is another one, and its
figures are held to AFTER_A_TIE of their size.
"""

import hashlib
import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

NOISE = {"fp32": 2.0**-18, "bf16": 2.0**-14}
HEADROOM = 8.0
FLOOR = 2.0**-20  # of a figure of order one
MOVED = 4  # assignments of a step that may fall the other way at a tie
AFTER_A_TIE = 0.05  # of a figure of order one, and of the assignments of a step
SERIES = ("loss", "grad_norm", "aux_loss", "z_loss")
# Flags of /proc/cpuinfo that libraries choose their code by.
_FLAGS = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512", "avx_vnni", "amx", "asimd", "sve", "bf16")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A tensor of the state at the end: SHA-256 of its bytes, its root mean square, and its mean along random signs."""

    digest: str
    rms: float
    probe: float


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a run computed.

    Attributes:
        made_on: what decides the bits besides the code; see `here`.
        kernels: name of the ops.
        series: loss, gradient norm, auxiliary and z loss of every step.
        counts: assignments [step][layer][expert]; empty lists in a dense model.
        eval_loss: of the held-out set at the end [nats].
        start: digest of all tensors before the first step.
        state: the tensors at the end, moments included.
        bounds: by figure, what another processor may differ by: of series and counts a list by step.
    """

    made_on: dict[str, str]
    kernels: str
    series: dict[str, list[float]]
    counts: list[list[list[int]]]
    eval_loss: float
    start: str
    state: dict[str, Weights]
    bounds: dict[str, list[float]] = field(default_factory=dict)


def here(kernels: str) -> dict[str, str]:
    """What decides the bits of a run on this machine besides the code."""
    made_on = {
        "processor": _processor(),
        "threads": "1",
        "mindspore": version("mindspore"),
        "numpy": version("numpy"),
    }
    if "pack" in kernels:
        from mindmoe.ops.cpu.build import find_compiler

        said = subprocess.run([find_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
        made_on["compiler"] = said.splitlines()[0]
    return made_on


def _processor() -> str:
    """Kind of processor: architecture, vendor, family, model, and the instruction sets that libraries look for."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().partition("\n\n")[0] if path.is_file() else ""
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    flags = (known.get("flags") or known.get("Features") or "").split()
    kept = sorted({flag for flag in flags if any(flag == name or flag.startswith(name) for name in _FLAGS)})
    names = (known.get(key, "") for key in ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part"))
    return " ".join([platform.machine(), *filter(None, names), *kept])


def assemble(folder: Path, name: str, cards: int) -> Trace:
    """The trace that the ranks of a run left.

    Raises:
        ValueError: ranks contradict each other, or no rank holds some part of a tensor.
    """
    ranks = []
    for rank in range(cards):
        with np.load(folder / f"{name}.{rank}.npz") as file:
            ranks.append({key: file[key] for key in file.files})
    for other in ranks[1:]:
        for key in ("series", "counts", "eval", "kernels"):
            if not np.array_equal(other[key], ranks[0][key]):
                raise ValueError(f"{name}: the ranks do not agree on {key}")
    start, end = (_tensors(ranks, name, moment) for moment in ("start", "end"))
    digests = " ".join(f"{tensor} {_digest(start[tensor])}" for tensor in sorted(start))
    kernels = str(ranks[0]["kernels"])
    return Trace(
        made_on=here(kernels),
        kernels=kernels,
        series={key: ranks[0]["series"][:, place].tolist() for place, key in enumerate(SERIES)},
        counts=ranks[0]["counts"].tolist(),
        eval_loss=float(ranks[0]["eval"]),
        start=hashlib.sha256(digests.encode()).hexdigest()[:16],
        state={tensor: _weights(tensor, end[tensor]) for tensor in sorted(end)},
    )


def _tensors(ranks: list[dict[str, np.ndarray]], name: str, moment: str) -> dict[str, np.ndarray]:
    """The whole tensors of a moment, put together from the boxes that the ranks hold; what two hold must be equal."""
    tensors: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    for record in ranks:
        for key in sorted(key for key in record if key.startswith(f"{moment}|")):
            _, tensor, offset, shape = key.split("|")
            value = record[key]
            whole = tuple(int(size) for size in shape.split(",") if size)
            starts = (int(low) for low in offset.split(",") if low)
            box = tuple(slice(low, low + size) for low, size in zip(starts, value.shape, strict=True))
            full = tensors.setdefault(tensor, np.zeros(whole, value.dtype))
            mask = seen.setdefault(tensor, np.zeros(whole, bool))
            if (full[box] != value)[mask[box]].any():
                raise ValueError(f"{name}: the ranks hold different values of {tensor}")
            full[box], mask[box] = value, True
    if holes := [tensor for tensor, mask in seen.items() if not mask.all()]:
        raise ValueError(f"{name}: no rank holds all of {', '.join(holes)}")
    return tensors


def _digest(value: np.ndarray) -> str:
    return hashlib.sha256(f"{value.dtype.str} {value.shape} ".encode() + value.tobytes()).hexdigest()[:16]


def _weights(name: str, value: np.ndarray) -> Weights:
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    signs = 1.0 - 2.0 * (np.random.Philox(key=key).random_raw(max(1, value.size)) % 2).astype(np.float64)
    flat = value.astype(np.float64).reshape(-1)
    return Weights(
        digest=_digest(value),
        rms=float(np.sqrt(np.mean(flat**2))) if flat.size else 0.0,
        probe=float(np.mean(flat * signs[: flat.size])) if flat.size else 0.0,
    )


def differences(kept: Trace, seen: Trace, exactly: bool | None = None) -> list[str]:
    """Where a run is not what its trace says, a line for each figure; none if it is.

    Args:
        kept: the trace that is kept.
        seen: what the run computed here.
        exactly: bit for bit, or within the bounds; by default bit for bit if both were made on the same.
    """
    if exactly is None:
        exactly = kept.made_on == seen.made_on
    found = []
    if kept.state.keys() != seen.state.keys():
        found.append(f"other tensors: {sorted(kept.state.keys() ^ seen.state.keys())}")
    wanted, got = _figures(kept), _figures(seen)
    tie = None if exactly else _first_difference(wanted["counts"], got["counts"])
    for key, value in wanted.items():
        if key not in got or value.shape != got[key].shape:
            found.append(f"{key}: another number of values")
            continue
        apart = _apart(value, got[key])
        limit = np.zeros(len(apart)) if exactly else np.array(kept.bounds[key])
        if tie is not None:
            after = slice(tie + (key == "counts"), None) if len(apart) > 1 else slice(None)
            size = value.sum(axis=1).max() if key == "counts" else max(1.0, float(np.abs(value).max()))
            limit[after] = np.maximum(limit[after], AFTER_A_TIE * size)
        wrong = np.flatnonzero(~(apart <= limit))
        if wrong.size:
            at = int(wrong[0])
            place = f" of step {at + 1}" if len(apart) > 1 else ""
            found.append(f"{key}{place}: {got[key][at]} instead of {value[at]} (allowed {limit[at]:.1e})")
    if exactly:
        found += [] if kept.start == seen.start else ["the state before the first step: other bits"]
        both = kept.state.keys() & seen.state.keys()
        bits = [key for key in sorted(both) if kept.state[key].digest != seen.state[key].digest]
        found += [f"{key}: other bits at the end" for key in bits]
    return found


def measured_bounds(plain: Trace, noisy: list[Trace]) -> dict[str, list[float]]:
    """The bounds of a run from repetitions of it with noise; see the head of this file."""
    bounds = {}
    for key, value in _figures(plain).items():
        apart = np.maximum.accumulate(np.max([_apart(value, _figures(other)[key]) for other in noisy], axis=0))
        least = MOVED if key == "counts" else FLOOR * max(1.0, float(np.abs(value).max()))
        bounds[key] = [float(f"{HEADROOM * each + least:.2g}") for each in apart]
    return bounds


def _figures(trace: Trace) -> dict[str, np.ndarray]:
    """What is compared by value: (steps,) or (steps, layers * experts) for what every step has, else (1,)."""
    figures = {key: np.array(values) for key, values in trace.series.items()}
    figures["eval_loss"] = np.array([trace.eval_loss])
    figures["counts"] = np.array(trace.counts).reshape(len(trace.counts), -1)
    for name, weights in trace.state.items():
        figures[f"{name}.rms"] = np.array([weights.rms])
        figures[f"{name}.probe"] = np.array([weights.probe])
    return figures


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far two figures are apart by step; of counts the assignments that moved."""
    if one.ndim == 1:
        return np.abs(one - other)
    return np.abs(one - other).sum(axis=1) / 2


def _first_difference(one: np.ndarray, other: np.ndarray) -> int | None:
    """The first step in which assignments differ."""
    steps = np.flatnonzero(_apart(one, other)) if one.shape == other.shape else np.zeros(0)
    return int(steps[0]) if steps.size else None


def read(path: Path) -> Trace:
    """The trace of a file."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["state"] = {name: Weights(digest=d, rms=rms, probe=probe) for name, (d, rms, probe) in raw["state"].items()}
    return Trace(**raw)


def write(trace: Trace, path: Path) -> None:
    """Writes a trace, a line for each figure and tensor, so that a renewal shows in a diff what moved."""
    raw = asdict(trace)
    raw["state"] = {name: list(weights.values()) for name, weights in raw["state"].items()}
    lines = []
    for key, value in raw.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items())
            lines.append(f"{json.dumps(key)}: {{\n{inner}\n}}")
        elif key == "counts":
            inner = ",\n".join(f"  {json.dumps(step)}" for step in value)
            lines.append(f"{json.dumps(key)}: [\n{inner}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
