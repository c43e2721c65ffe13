"""Charts of a run as SVG text that takes its colours from the page, so that one file suits light and dark."""

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from mindmoe.observe.story import Columns, RoutingStory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

BINS = 320  # points of a downsampled curve, about two pixels each
NARROW, WIDE = 6.2, 12.6  # [inches]

# Name of each colour on the page, in light and in dark mode. Charts are drawn in the light ones; every light
# one then becomes a reference to its name.
COLOURS = {
    "ink": ("#1c2333", "#e6e9f0"),
    "muted": ("#667085", "#98a2b3"),
    "grid": ("#e4e7ec", "#2a3242"),
    "blue": ("#2563eb", "#6ea8fe"),
    "orange": ("#d9480f", "#ff9f5a"),
    "green": ("#15803d", "#57d38c"),
    "violet": ("#7c3aed", "#b79cff"),
    "red": ("#dc2626", "#ff8080"),
}
INK, MUTED, GRID, BLUE, ORANGE, GREEN, VIOLET, RED = (light for light, _ in COLOURS.values())


def bands(x: np.ndarray, y: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A long curve as few points that still show every extreme.

    Args:
        x: positions, ascending (n,).
        y: values (n,); those that are not finite are left out.
        bins: points wanted.

    Returns:
        x, minimum, mean and maximum of at most `bins` consecutive groups of points.
    """
    keep = np.isfinite(y) & np.isfinite(x)
    x, y = x[keep], y[keep]
    if len(y) <= bins:
        return x, y, y, y
    starts = np.arange(bins) * len(y) // bins
    counts = np.diff(starts, append=len(y))
    low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
    return np.add.reduceat(x, starts) / counts, low, np.add.reduceat(y, starts) / counts, high


def loss_chart(train: Columns, evals: Columns) -> str:
    """Training and validation loss, and the entropies that a model must get below to have learned anything."""
    axes = _axes("nats per token", width=WIDE, height=3.6)
    _curve(axes, train["step"], train["loss"], BLUE, "train")
    for step in train["step"][~np.isfinite(train["loss"])][:20]:
        axes.axvline(step, color=RED, alpha=0.5, linewidth=1)
    seen = np.isfinite(evals["loss"])
    if seen.any():
        at, _, mean, _ = bands(evals["step"], evals["loss"])
        mark = "o" if len(at) <= 60 else ""
        axes.plot(at, mean, color=ORANGE, marker=mark, markersize=4, linewidth=1.6, label="valid")
    for key, style in (("unigram_entropy", "--"), ("bigram_entropy", ":")):
        known = evals[key][np.isfinite(evals[key])]
        if len(known):
            label = f"{key.replace('_', ' ')} {known[-1]:.2f}"
            axes.axhline(known[-1], color=MUTED, linestyle=style, linewidth=1.4, label=label)
    _legend(axes)
    return _svg(axes)


def curve_chart(train: Columns, key: str, ylabel: str, colour: str, log: bool = False) -> str:
    """One curve over the steps, its range as a band.

    Args:
        log: show every extreme, on a logarithmic axis if the values span more than a factor of 30. Otherwise the
            axis begins at 0 and may leave out rare outliers.
    """
    axes = _axes(ylabel)
    values = train[key][np.isfinite(train[key])]
    _curve(axes, train["step"], train[key], colour)
    if log and len(values) and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0, top=None if log else _top(values))
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 5))
    return _svg(axes)


def time_chart(train: Columns) -> str:
    """Where the time of a step goes, stacked."""
    parts = [("compute", BLUE), ("update", VIOLET), ("data", GREEN), ("other", MUTED)]
    seconds = {name: np.nan_to_num(train[f"{name}_seconds"]) for name, _ in parts[:-1]}
    seconds["other"] = np.clip(np.nan_to_num(train["step_seconds"]) - sum(seconds.values()), 0, None)
    means = {name: bands(train["step"], values) for name, values in seconds.items()}
    axes = _axes("seconds per step")
    axes.stackplot(
        means["other"][0],
        *[means[name][2] for name, _ in parts],
        labels=[name for name, _ in parts],
        colors=[colour for _, colour in parts],
        alpha=0.75,
        linewidth=0,
    )
    axes.set_ylim(bottom=0, top=_top(train["step_seconds"]))
    _legend(axes)
    return _svg(axes)


def balance_chart(train: Columns) -> str:
    """How unevenly experts are used; 0 is even."""
    axes = _axes("0 = even")
    _curve(axes, train["step"], train["max_vio"], ORANGE, "maximum violation")
    _curve(axes, train["step"], train["load_cv"], BLUE, "coefficient of variation")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return _svg(axes)


def arms_chart(series: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Curves of several configurations: by name the steps (n) and the values (runs, n), their range as a band."""
    axes = _axes("nats per token", width=WIDE, height=3.6)
    colours = (BLUE, ORANGE, GREEN, VIOLET, RED, MUTED)
    for number, (name, (steps, values)) in enumerate(series.items()):
        colour, style = colours[number % len(colours)], "-" if number < len(colours) else "--"
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        axes.plot(steps, values.mean(0), color=colour, linestyle=style, linewidth=1.6, label=name)
    _legend(axes)
    return _svg(axes)


def load_chart(routing: RoutingStory) -> str:
    """Layers by experts: the load of each expert in units of its fair share."""
    return share_chart(routing.load)


def share_chart(load: np.ndarray, top: float = 2.0) -> str:
    """Load fractions (layers, experts) in units of the fair share.

    Args:
        load: fractions, those of a layer add up to 1.
        top: the share that the brightest colour stands for, at least; charts that are compared share it.
    """
    share = load * load.shape[1]
    axes = _axes("layer", "expert", WIDE, _height(len(share)), grid=False)
    top = max(top, float(share.max()))
    image = axes.imshow(share, aspect="auto", cmap="viridis", vmin=0, vmax=top, origin="lower", interpolation="none")
    _colour_bar(axes, image, "x fair share")
    return _svg(axes)


def evolution_chart(routing: RoutingStory) -> str:
    """Layers by time: the maximum violation of each layer over the run."""
    steps = routing.steps
    groups = np.array_split(np.arange(len(steps)), min(BINS, len(steps)))
    values = np.stack([routing.max_vio[group].max(axis=0) for group in groups], axis=1)  # (layers, groups)
    axes = _axes("layer", "step", WIDE, _height(len(values)), grid=False)
    half = 0.5 * (steps[-1] - steps[0]) / max(1, len(groups) - 1) or 0.5
    extent = (steps[0] - half, steps[-1] + half, -0.5, len(values) - 0.5)
    image = axes.imshow(
        values, aspect="auto", cmap="magma", vmin=0, origin="lower", extent=extent, interpolation="none"
    )
    _colour_bar(axes, image, "max violation")
    return _svg(axes)


def _curve(axes: "Axes", x: np.ndarray, y: np.ndarray, colour: str, label: str = "") -> None:
    at, low, mean, high = bands(x, y)
    if len(at) and not np.array_equal(low, high):
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    mark = "o" if len(at) == 1 else ""
    axes.plot(at, mean, color=colour, linewidth=1.6, marker=mark, markersize=4, label=label or None)


def _top(values: np.ndarray) -> float | None:
    """The upper end of an axis that a few outliers, such as the first step with its compilation, do not stretch."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    return min(float(known.max()) * 1.1, float(np.percentile(known, 90)) * 1.6) or None


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=4,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            handlelength=1.4,
            columnspacing=1.2,
            borderpad=0.2,
        )


def _colour_bar(axes: "Axes", image: "AxesImage", label: str) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    axes.set_position(_box(figure, 0.5, 0.46, width - 0.85, height - 0.05))
    bar = figure.colorbar(image, cax=figure.add_axes(_box(figure, width - 0.75, 0.46, width - 0.6, height - 0.05)))
    bar.set_label(label, color=MUTED, fontsize=9)
    bar.ax.tick_params(colors=MUTED, labelsize=9, length=0)
    bar.outline.set_visible(False)
    bar.ax.patch.set_visible(False)


def _box(figure: "Figure", left: float, bottom: float, right: float, top: float) -> tuple[float, float, float, float]:
    """A rectangle in inches from the lower left corner, as matplotlib wants it."""
    width, height = figure.get_size_inches()
    return left / width, bottom / height, (right - left) / width, (top - bottom) / height


def _height(layers: int) -> float:
    """Of a chart with a row per layer [inches]."""
    return min(6.0, max(1.9, 1.2 + 0.13 * layers))


def _axes(ylabel: str, xlabel: str = "step", width: float = NARROW, height: float = 2.9, grid: bool = True) -> "Axes":
    """Empty axes in the style of the page; sizes in inches, which the page scales to its columns."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width, height))
    figure.patch.set_visible(False)
    # Fixed margins: finding the tightest ones would double the time of a chart.
    axes = figure.add_axes(_box(figure, 0.68, 0.46, width - 0.08, height - 0.3))
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(which="both", colors=MUTED, labelsize=9, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.set_xlabel(xlabel, color=MUTED, fontsize=9)
    axes.set_ylabel(ylabel, color=MUTED, fontsize=9)
    if grid:
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    return axes


def _svg(axes: "Axes") -> str:
    """The figure as an SVG element that an HTML page can hold."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mindmoe"}):
        axes.figure.savefig(out, format="svg")  # type: ignore[union-attr]
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for nothing in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r"<style.*?</style>", r' xmlns(:xlink)?="[^"]*"'):
        text = re.sub(nothing, "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    # In attributes, not in text: a hundredth of a point is finer than any screen.
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    for name, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text)
