"""The plan as one HTML file: tables and the Pareto picture inline, nothing fetched from anywhere."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from mindmoe.plan.search import SearchResult
from mindmoe.plan.tables import GIB, TableData

_POINTS_SHOWN = 6000
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: 13px; }
th, td { border-bottom: 1px solid #8884; padding: .2rem .7rem; text-align: left; vertical-align: top; }
td.r, th.r { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } img { max-width: 100%; background: #fff; } pre { background: #8881; padding: 1rem; }
"""


def pareto_picture(result: SearchResult, memory_gib: float) -> bytes:
    """The layouts that fit and their Pareto front as a PNG: memory [GiB] across, step time [s] up."""
    from matplotlib.figure import Figure  # slow to import, and only a report needs it

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    points = result.points[:: max(1, len(result.points) // _POINTS_SHOWN)]
    axes.scatter(points[:, 0] / GIB, points[:, 1], s=4, color="#b5b5b5", label="layouts that fit", linewidths=0)
    front = np.array([(memory / GIB, step_s) for memory, step_s, _ in result.pareto])
    axes.plot(front[:, 0], front[:, 1], drawstyle="steps-post", color="#0b5cad", label="Pareto front")
    for number, estimate in enumerate(result.best[:10], start=1):
        place = estimate.memory.total / GIB, estimate.step_s
        axes.plot(*place, "o", color="#c0392b", markersize=4, label="ten best" if number == 1 else None)
        axes.annotate(str(number), place, textcoords="offset points", xytext=(4, -9), fontsize=8)
    fastest = result.best[0].step_s
    axes.set(
        xlim=(0, memory_gib),
        ylim=(0.8 * fastest, 5 * fastest),
        xlabel="memory of the fullest rank [GiB]",
        ylabel="step time [s]",
        title="Memory against step time",
    )
    axes.legend(loc="upper right")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def html_table(table: TableData) -> str:
    """A table as HTML, its text escaped."""
    marks = [' class="r"' if column.startswith(">") else "" for column in table.columns]
    head = "".join(f"<th{mark}>{escape(name)}</th>" for mark, name in zip(marks, table.headers, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>\n"
        for row in table.rows
    )
    return (
        f"<h2>{escape(table.title)}</h2>\n<div class='scroll'><table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>\n"
    )


def write_report(
    path: Path, title: str, notes: Sequence[str], tables: Sequence[TableData], picture: bytes, fragment: str
) -> None:
    """Writes the report.

    Args:
        notes: paragraphs under the title.
        tables: the first one goes above the picture.
        picture: a PNG.
        fragment: the config of the chosen layout.
    """
    image = base64.b64encode(picture).decode("ascii")
    paragraphs = "".join(f"<p>{escape(note)}</p>\n" for note in notes)
    shown = [html_table(table) for table in tables]
    path.write_text(
        f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n{paragraphs}{shown[0]}"
        f"<img alt='Memory against step time of all layouts that fit, with their Pareto front' "
        f"src='data:image/png;base64,{image}'>\n{''.join(shown[1:])}"
        f"<h2>Config of the first layout</h2>\n<pre>{escape(fragment)}</pre>\n</body></html>\n",
        encoding="utf-8",
    )
