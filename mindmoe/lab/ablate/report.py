"""The report of an ablation: verdict, reasons, tables, curves and loads in one HTML file (dry)."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindmoe.config.load import dump_config
from mindmoe.lab.ablate.main import AblationOutcome
from mindmoe.lab.ablate.statistics import Gain
from mindmoe.lab.ablate.template import PAGE
from mindmoe.lab.ablate.verdict import GO
from mindmoe.observe import charts


def write_report(outcome: AblationOutcome, out: Path) -> Path:
    """Writes the report and returns its path."""
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    aside.write_text(render(outcome), encoding="utf-8")
    os.replace(aside, out)
    return out


def render(outcome: AblationOutcome) -> str:
    """The report as HTML."""
    from jinja2 import Environment, StrictUndefined

    verdict, ablation = outcome.verdict, outcome.ablation
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    planned = f"{len(ablation.arms)} arms, {len(ablation.seeds)} seeds planned, {outcome.missing} runs missing"
    return template.render(
        name=ablation.name,
        colours=charts.COLOURS,
        answer=verdict.answer if verdict else "no verdict yet" if ablation.looks else "no verdict",
        colour="green" if verdict and verdict.answer == GO else "orange" if verdict else "blue",
        planned=planned,
        reasons=verdict.reasons if verdict else [outcome.problem],
        rule=_rule(outcome),
        arms=list(_arms(outcome)),
        comparisons=list(_comparisons(outcome)),
        charts=list(_charts(outcome)),
        searches=list(_searches(outcome)),
        config_text=dump_config(ablation),
    )


def _rule(outcome: AblationOutcome) -> str:
    """How the verdict is reached; nothing where no look is planned."""
    ablation, fit = outcome.ablation, outcome.fit
    if not ablation.looks:
        return ""
    looks = ", ".join(f"{look.seeds} seeds at {look.alpha:g}" for look in ablation.looks)
    slope = f"slope {fit.slope:.3f} +- {fit.error:.3f} nats per factor e of compute" if fit else "no slope yet"
    return (
        f"One-sided paired t tests after {looks}, Holm's correction over candidates, basis "
        f"{ablation.basis.replace('_', '-')}, threshold {ablation.threshold:.0%}; {slope}."
    )


def _arms(outcome: AblationOutcome) -> Iterator[dict[str, str]]:
    for name, arm in outcome.ablation.arms.items():
        runs, result = list(outcome.runs[name].values()), outcome.results.get(name)
        losses = np.array([run.loss for run in runs])
        row = {"name": name, "role": arm.role, "seeds": str(len(runs))}
        if result is None:
            yield row | dict.fromkeys(("loss", "k", "cv", "max_vio", "dropped", "flops", "seconds"), "-")
            continue
        spread = f" (sd {losses.std(ddof=1):.4f})" if len(losses) > 1 else ""
        yield row | {
            "loss": f"{losses.mean():.4f}{spread}",
            "k": f"{np.mean([run.mean_k for run in runs]):.3f}",
            "cv": f"{np.mean([run.load_cv for run in runs]):.3f}",
            "max_vio": f"{np.mean([run.max_vio for run in runs]):.2f}",
            "dropped": f"{np.mean([run.dropped for run in runs]):.2%}",
            "flops": f"{result.flops:.3g}",
            "seconds": f"{result.seconds:.0f}",
        }


def _comparisons(outcome: AblationOutcome) -> Iterator[dict[str, str]]:
    for item in outcome.verdict.comparisons if outcome.verdict else ():
        yield {
            "name": f"{item.arm} against {item.against}",
            "pairs": str(item.seeds),
            "difference": f"{item.difference:+.4f} (sd {item.deviation:.4f})",
            "p": f"{item.p_value:.3f}",
            "token": _gain(item.iso_token),
            "flop": _gain(item.iso_flop),
            "clock": _gain(item.iso_wall_clock),
        }


def _gain(gain: Gain) -> str:
    return f"{gain.mean:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}]"


def _charts(outcome: AblationOutcome) -> Iterator[Mapping[str, Any]]:
    series = {}
    for name, runs in outcome.runs.items():
        lengths = {len(run.curve[0]) for run in runs.values()}
        if runs and len(lengths) == 1:
            steps = next(iter(runs.values())).curve[0]
            series[name] = (np.array(steps, float), np.array([run.curve[1] for run in runs.values()], float))
    if series:
        note = "mean over finished seeds; the band spans them"
        yield {"title": "Held-out loss", "note": note, "svg": charts.arms_chart(series)}
    loads = {name: [run.load for run in runs.values() if run.load is not None] for name, runs in outcome.runs.items()}
    shown = {name: found[0] for name, found in loads.items() if found}
    top = max((float(load.max()) * load.shape[1] for load in shown.values()), default=0.0)
    for name, load in shown.items():
        note = "last step of one seed; 1 is the fair share, and colours mean the same for every arm"
        yield {"title": f"Load of every expert: {name}", "note": note, "svg": charts.share_chart(load, max(2.0, top))}


def _settings(settings: Mapping[str, float]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in settings.items())


def _searches(outcome: AblationOutcome) -> Iterator[Mapping[str, Any]]:
    for name, records in outcome.trials.items():
        rows = [
            {
                "number": str(number),
                "source": record.source,
                "settings": _settings(record.settings),
                "value": f"{record.value:.4f}",
                "gap": "-" if record.gap is None else f"{record.gap:.1%}",
                "seconds": f"{1000 * record.seconds:.0f} ms",
            }
            for number, record in enumerate(records, 1)
        ]
        if rows:
            yield {"name": name, "rows": rows, "chosen": _settings(outcome.settings.get(name, {}))}
