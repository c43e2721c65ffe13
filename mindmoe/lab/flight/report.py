"""`mindmoe report RUN --routing`: recorded routing decisions, and what they would cost under other rules (dry)."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mindmoe.config.run import RunConfig
from mindmoe.lab.flight.trace import Trace, read_traces
from mindmoe.lab.flight.what_if import FACTORS, balance, check_same, dropped, loads, placed
from mindmoe.observe import charts
from mindmoe.observe.report_template import HEAD
from mindmoe.train.folder import RunFolder

PAGE = (
    HEAD
    + """\
<body>
<header><h1>{{ name }}</h1><p>{{ what }}</p></header>
<main>
{%- for table in tables %}
<h2>{{ table.title }}</h2>
<p>{{ table.note }}</p>
<div class="box" tabindex="0"><table>
<thead><tr>{% for cell in table.head %}<th>{{ cell }}</th>{% endfor %}</tr></thead><tbody>
{%- for row in table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- if table.conclusion %}
<p>{{ table.conclusion }}</p>
{%- endif %}
{%- endfor %}
<h2>Load of every expert</h2>
<div class="charts"><figure class="wide" role="img" aria-label="load of every expert">
<figcaption>newest record<span>1 is the fair share</span></figcaption>{{ chart | safe }}</figure></div>
</main>
<footer>Written by mindmoe from the routing records of the run.</footer>
</body>
</html>
"""
)
Table = dict[str, object]


def write_routing_report(run: Path, num_ranks: int, out: Path | None) -> Path:
    """Writes the report, prints its tables, and returns its path.

    Args:
        run: folder of a run that recorded routing.
        num_ranks: ranks that share the experts in the what-if of placements.
        out: the file, by default routing.html in that folder.

    Raises:
        UserError: nothing was recorded, or the experts cannot be shared like that.
    """
    from jinja2 import Environment, StrictUndefined
    from rich.console import Console
    from rich.table import Table as Printed

    config = RunFolder(run).load_config()
    traces = read_traces(run)
    check_same(traces)
    found = list(tables(config, traces, num_ranks))
    console = Console()
    for table in found:
        printed = Printed(*table["head"], title=str(table["title"]))  # type: ignore[misc]
        for row in table["rows"]:  # type: ignore[attr-defined]
            printed.add_row(*row)
        console.print(printed)
        if table["conclusion"]:
            console.print(str(table["conclusion"]), soft_wrap=True)
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    load = loads(traces[-1])
    steps = ", ".join(f"{trace.step:,}" for trace in traces)
    text = page.render(
        name=config.name,
        what=f"routing recorded after steps {steps}; what-ifs replay these decisions",
        colours=charts.COLOURS,
        tables=found,
        chart=charts.share_chart(load / load.sum(1, keepdims=True)),
    )
    out = out or run / "routing.html"
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, out)
    return out


def tables(config: RunConfig, traces: Sequence[Trace], num_ranks: int) -> Iterator[Table]:
    """What-ifs of k, capacity and placement."""
    assert config.moe is not None, "recorded routing"
    moe, row = config.moe, 2.0 * config.model.hidden_size
    slots = traces[0].ids.shape[-1]
    counts = range(slots, 0, -1) if moe.router.ranked else [slots]
    yield {
        "title": "Fewer experts a token",
        "note": "the best k places alone, as they were ranked"
        + (
            ""
            if moe.router.ranked
            else "; places of this router are in the order of groups, so no smaller k can be replayed"
        ),
        "head": ["k", "mean k", "load CV", "worst max violation"],
        "rows": [
            [str(at.k), f"{at.mean_k:.3f}", f"{at.cv:.3f}", f"{at.max_vio:.2f}"]
            for at in (balance(traces, k) for k in counts)
        ],
        "conclusion": "",
    }
    yield {
        "title": "Capacity",
        "note": "assignments beyond ceil(factor * S * k / E) of an expert in a sequence; dropless runs drop none",
        "head": ["capacity factor", "dropped, mean of layers", "dropped, worst layer"],
        "rows": [
            [f"{factor:g}", f"{at.share.mean():.2%}", f"{at.share.max():.2%}"]
            for factor in FACTORS
            for at in [dropped(traces, factor, float(moe.num_experts_per_tok))]
        ],
        "conclusion": "",
    }
    ways = placed(traces, num_ranks, row)
    moved, layers = ways[-1].moved, len(ways[-1].placements)
    yield {
        "title": f"Placement on {num_ranks} ranks",
        "note": "predicted from the newer half of the records for placements made from the older half; a token goes to "
        "a rank once, whatever the number of its experts there, in bf16. A layer stays in order unless the busiest "
        "rank's load times the bytes falls and neither of them grows, each by more than another batch moves it",
        "head": ["experts", "busiest rank / mean", "bytes a token, one direction", "ranks a token"],
        "rows": [
            [
                way.name,
                f"{way.mean('imbalance'):.3f}",
                f"{way.mean('bytes_per_token'):,.0f}",
                f"{way.mean('ranks_per_token'):.2f}",
            ]
            for way in ways
        ],
        "conclusion": f"{moved} of {layers} layers gain by another placement; `mindmoe ckpt place` writes it"
        if moved
        else "experts stay in order: no placement is predicted to be better",
    }
