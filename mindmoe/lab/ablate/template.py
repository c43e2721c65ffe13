"""The page of an ablation's report, in Jinja2 with autoescaping; it shares the style of a run's report."""

from mindmoe.observe.report_template import HEAD

PAGE = (
    HEAD
    + """\
<body>
<header>
<h1>{{ name }}</h1>
<p><span class="state" style="color: var(--{{ colour }})">{{ answer }}</span> {{ planned }}</p>
</header>
<main>
<h2>Reasons</h2>
<ul>{% for reason in reasons %}<li>{{ reason }}</li>{% endfor %}</ul>
<p>{{ rule }}</p>
<h2>Arms</h2>
<div class="box" tabindex="0"><table>
<thead><tr><th>arm</th><th>role</th><th>seeds</th><th>held-out loss [nats]</th><th>mean k</th><th>load CV</th>
<th>MaxVio</th><th>dropped</th><th>FLOPs of a run</th><th>seconds of a run</th></tr></thead><tbody>
{%- for arm in arms %}
<tr><td>{{ arm.name }}</td><td>{{ arm.role }}</td><td>{{ arm.seeds }}</td><td>{{ arm.loss }}</td><td>{{ arm.k }}</td>
<td>{{ arm.cv }}</td><td>{{ arm.max_vio }}</td><td>{{ arm.dropped }}</td><td>{{ arm.flops }}</td>
<td>{{ arm.seconds }}</td></tr>
{%- endfor %}
</tbody></table></div>
<p>FLOPs count the experts that were really used, the difficulty heads and, in full, the trials of a search.</p>
{%- if comparisons %}
<h2>Compute-equivalent gain over the baseline</h2>
<div class="box" tabindex="0"><table>
<thead><tr><th>comparison</th><th>pairs</th><th>loss saved [nats]</th><th>p at equal tokens</th>
<th>at equal tokens [95%]</th><th>at equal FLOPs [95%]</th><th>at equal wall-clock [95%]</th></tr></thead><tbody>
{%- for row in comparisons %}
<tr><td>{{ row.name }}</td><td>{{ row.pairs }}</td><td>{{ row.difference }}</td><td>{{ row.p }}</td>
<td>{{ row.token }}</td><td>{{ row.flop }}</td><td>{{ row.clock }}</td></tr>
{%- endfor %}
</tbody></table></div>
<p>The wall-clock of a CPU says nothing about other hardware.</p>
{%- endif %}
{%- if charts %}
<h2>Curves and loads</h2>
<div class="charts">
{%- for chart in charts %}
<figure class="wide" role="img" aria-label="{{ chart.title }}: {{ chart.note }}">
<figcaption>{{ chart.title }}<span>{{ chart.note }}</span></figcaption>
{{ chart.svg | safe }}
</figure>
{%- endfor %}
</div>
{%- endif %}
{%- for search in searches %}
<h2>Search of {{ search.name }}</h2>
<p>{% if search.chosen %}chosen: {{ search.chosen }}{% else %}not finished{% endif %}. The gap is to the exhaustive
optimum of the same surrogate, as a share of its range.</p>
<div class="box" tabindex="0"><table>
<thead><tr><th>trial</th><th>source</th><th>settings</th><th>objective</th><th>gap</th><th>took</th></tr></thead><tbody>
{%- for row in search.rows %}
<tr><td class="number">{{ row.number }}</td><td>{{ row.source }}</td><td>{{ row.settings }}</td><td>{{ row.value }}</td>
<td>{{ row.gap }}</td><td>{{ row.seconds }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- endfor %}
<details><summary>The plan, as it was fixed</summary>
<div class="box" tabindex="0"><pre>{{ config_text }}</pre></div></details>
</main>
<footer>Written by mindmoe from the metrics of the runs.</footer>
</body>
</html>
"""
)
