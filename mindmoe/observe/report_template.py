"""The page of a run's report, in Jinja2 with autoescaping: whatever is put in is text, except the charts."""

HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ name }} - report</title>
<style>
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --line: #e4e7ec;
  {% for name, (light, dark) in colours.items() %}--{{ name }}: {{ light }}; {% endfor %}}
@media (prefers-color-scheme: dark) { :root { --page: #0f131b; --card: #171c27; --line: #2a3242;
  {% for name, (light, dark) in colours.items() %}--{{ name }}: {{ dark }}; {% endfor %}} }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main, header { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; padding-bottom: 8px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 34px 0 12px; }
p { margin: 0; color: var(--muted); }
.state { display: inline-block; padding: 1px 10px; border-radius: 99px; border: 1px solid currentColor;
  font-size: 13px; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(172px, 1fr)); gap: 12px;
  margin: 20px 0 0; padding: 0; }
.tile, figure, .box { background: var(--card); border: 1px solid var(--line); border-radius: 12px; margin: 0; }
.tile { padding: 14px 16px; }
.tile dt { color: var(--muted); font-size: 13px; }
.tile dd { margin: 0; }
.tile .value { font-size: 24px; font-weight: 650; font-variant-numeric: tabular-nums; letter-spacing: -.01em; }
.tile .note { color: var(--muted); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 14px; }
figure { padding: 14px 16px 8px; min-width: 0; }
figure.wide { grid-column: 1 / -1; overflow-x: auto; }
figure.wide svg { min-width: 640px; }
figcaption { font-weight: 600; margin-bottom: 6px; }
figcaption span { display: block; font-weight: 400; font-size: 13px; color: var(--muted); }
figure svg { display: block; width: 100%; height: auto; font-family: inherit; stroke-linejoin: round; }
.box { overflow: auto; max-height: 420px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 6px 14px; border-top: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
thead th { white-space: nowrap; position: sticky; top: 0; background: var(--card); border-top: 0; color: var(--muted);
  font-weight: 600; }
tbody th { font-weight: 500; color: var(--muted); width: 30%; }
td.number { text-align: right; font-variant-numeric: tabular-nums; width: 1%; white-space: nowrap; }
td.time { white-space: nowrap; width: 1%; color: var(--muted); }
pre { margin: 0; padding: 14px 16px; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
summary { cursor: pointer; font-size: 17px; font-weight: 600; margin: 34px 0 12px; }
a, summary { color: inherit; }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 3px; border-radius: 4px; }
footer { max-width: 1180px; margin: 0 auto; padding: 30px 20px 40px; color: var(--muted); font-size: 13px; }
@media print { .box { max-height: none; } figure, .tile { break-inside: avoid; } }
</style>
</head>
"""
"""From the doctype to the end of the head, for `name` and `colours`; reports of every kind begin with it."""

PAGE = (
    HEAD
    + """\
<body>
<header>
<h1>{{ name }}</h1>
<p><span class="state" style="color: var(--{{ state.colour }})">{{ state.label }}</span> {{ state.text }}</p>
<dl class="tiles">
{%- for tile in tiles %}
<div class="tile"><dt>{{ tile.label }}</dt>
<dd class="value">{{ tile.value }}</dd><dd class="note">{{ tile.note }}</dd></div>
{%- endfor %}
</dl>
</header>
<main>
{%- for section in sections %}
<h2>{{ section.title }}</h2>
<div class="charts">
{%- for chart in section.charts %}
<figure{% if chart.wide %} class="wide"{% endif %} role="img" aria-label="{{ chart.title }}: {{ chart.note }}">
<figcaption>{{ chart.title }}<span>{{ chart.note }}</span></figcaption>
{{ chart.svg | safe }}
</figure>
{%- endfor %}
</div>
{%- endfor %}
{%- if not sections %}
<h2>No training step has been recorded yet</h2>
<p>The charts appear once metrics.jsonl holds records.</p>
{%- endif %}
{%- if events %}
<h2>Events</h2>
{%- if hidden_events %}<p>The first {{ hidden_events }} are left out; metrics.jsonl has them all.</p>{% endif %}
<div class="box" tabindex="0"><table>
<thead><tr><th>time (UTC)</th><th>step</th><th>event</th><th>message</th></tr></thead>
<tbody>
{%- for event in events %}
<tr><td class="time">{{ event.time }}</td><td class="number">{{ event.step }}</td>
<td>{{ event.event }}</td><td>{{ event.message }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}
{%- if environment %}
<h2>Environment</h2>
<div class="box" tabindex="0"><table><tbody>
{%- for key, value in environment %}
<tr><th>{{ key }}</th><td>{{ value }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}
{%- if config_text %}
<details open><summary>Resolved config</summary>
<div class="box" tabindex="0"><pre>{{ config_text }}</pre></div></details>
{%- endif %}
</main>
<footer>Written by mindmoe from this run's metrics.jsonl, config.yaml and environment.json.</footer>
</body>
</html>
"""
)
