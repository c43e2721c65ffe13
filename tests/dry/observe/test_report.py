"""The report: complete, self-contained, safe with hostile input, and right about its figures."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mindmoe.host.errors import UserError
from mindmoe.observe.charts import bands
from mindmoe.observe.report import _state, _tiles, write_report
from mindmoe.observe.story import TRAIN_KEYS, read_story

MakeRun = Callable[..., Path]
XSS = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}</style></pre>"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open, f"unclosed {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def report(run: Path) -> str:
    """The report of a run, after checking what must hold for every report."""
    path = write_report(run)
    assert path == run / "report.html" and path.stat().st_size <= 2**20
    page = path.read_text()
    parsed = Page(page)
    assert not {"script", "iframe", "object", "link", "base", "form", "img"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    for name, value in parsed.attributes:
        if name in ("href", "src", "xlink:href", "action"):
            assert value.startswith(("#", "data:image/png;base64,")), value
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import", re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", page))
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    return page


def test_a_whole_run(make_run: MakeRun, records: SimpleNamespace) -> None:
    environment = {"python": "3.11", "cpu": None, "packages": {"numpy": "1.26.4"}}
    page = report(make_run(records.whole_run(), name="first-run", environment=environment))
    text = re.sub(r"\s+", " ", Page(page).text)
    for part in (
        "first-run",
        "finished 40 of 40 steps",
        "Validation loss 4.2500 perplexity 70.1, 1.500 bits per byte",
        "Below unigram entropy 2.000 nats unigram 6.250, bigram 4.500 nats",
        "Tokens 81.9 k",
        "Tokens per second 4,096",
        "MFU 30.0%",
        "Median step 500 ms",
        "Load of every expert at step 40",
        "saved",
        "packages.numpy 1.26.4",
        "cpu unknown",
        "train: {steps: 40}",
    ):
        assert part in text, part
    for title in (
        "Loss",
        "Gradient norm",
        "Learning rate",
        "Throughput",
        "Time of a step",
        "Balance",
        "Router entropy",
    ):
        assert f"<figcaption>{title}<span>" in page
    assert page.count("<svg") == page.count("</svg>") == page.count("<figure") == 9
    assert "Dropped" not in page, "nothing was dropped"
    assert "prefers-color-scheme: dark" in page
    charts = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): #", charts), "every colour of a chart is a variable of the page"
    assert "var(--blue)" in charts and "var(--ink)" in charts


@pytest.mark.parametrize(
    "content", [None, [], [{"kind": "event", "step": 0, "time": 0, "event": "start", "message": ""}]]
)
def test_a_run_without_points(make_run: MakeRun, content: list[dict[str, Any]] | None) -> None:
    page = report(make_run(content))
    assert "No training step has been recorded yet" in page and "in progress" in page


def test_one_point_with_dropped_tokens(make_run: MakeRun, records: SimpleNamespace) -> None:
    page = report(make_run([records.train(1, dropped_fraction=0.1), records.routing(1)]))
    assert "<figcaption>Loss<span>" in page and "<figcaption>Dropped<span>" in page
    assert "Imbalance of every layer" not in page, "one moment is no course"


def test_a_dense_run_has_no_experts(make_run: MakeRun, records: SimpleNamespace) -> None:
    steps = [records.train(step, moe=False, mfu=None, tokens_per_s=0.0001 * step) for step in range(1, 9)]
    page = report(make_run(steps))
    assert "Experts" not in page and "MFU" not in page and "<figcaption>Loss<span>" in page
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert any(label.startswith("1e") for label in labels) and "0.0000" not in labels, "small numbers stay readable"


def test_a_run_that_diverged(make_run: MakeRun, records: SimpleNamespace) -> None:
    steps = [records.train(step) for step in range(1, 5)]
    nan = records.event(4, "nan", "loss is not finite")
    assert "not finite" in _state(read_story(make_run([*steps, nan]))).label
    assert "in progress" in _state(read_story(make_run([*steps, nan, records.train(5)], name="on"))).label
    resumed = [*steps[:3], records.event(9, "finish"), records.event(2, "resume"), steps[3]]
    assert "in progress" in _state(read_story(make_run(resumed, name="again"))).label
    empty = {key: None for key in TRAIN_KEYS if key not in ("step", "time")}
    page = report(make_run([records.train(step, **empty) for step in (1, 2)], name="all"))
    assert "Training loss" not in page and "No training step" in page


def test_a_loss_above_the_entropy_is_called_so(make_run: MakeRun, records: SimpleNamespace) -> None:
    tiles = {tile.label: tile.value for tile in _tiles(read_story(make_run([records.eval(1, loss=7.0)])))}
    assert tiles["Above unigram entropy"] == "0.750 nats"


def test_hostile_texts_are_only_text(make_run: MakeRun, records: SimpleNamespace) -> None:
    name = XSS.replace("/", "|")
    content = [records.event(20, XSS, XSS), {**records.event(20), "time": XSS, "step": 2**70}]
    page = report(make_run(content, name=name, config=f"name: {XSS}\n", environment={XSS: {XSS: XSS}}))
    text = Page(page).text
    assert name in text and text.count(XSS) >= 5
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", page)[0], "templates in data are not evaluated"


MALFORMED: list[dict[str, Any]] = [
    {"kind": "train", "step": 3, "loss": "x", "lr": [1], "time": {}, "tokens": True},
    {"kind": "train", "step": 3, "loss": 1e300, "grad_norm": -1e300, "tokens_per_s": 10**400},
    {"kind": "eval", "step": 3, "loss": "x"},
    {"kind": "event", "step": 3},
    {"kind": "event", "step": 3, "event": [1], "message": {}, "time": 1e300},
    {"kind": "other", "step": 3},
]
BAD_ROUTING: list[dict[str, Any]] = [
    {"load": [[0.5, 0.5], [1.0]], "max_vio": [1.0, 1.0]},
    {"load": [[]], "max_vio": [1.0]},
    {"load": [1.0], "max_vio": 1.0},
    {"load": [["a"]], "max_vio": ["b"]},
    {},
]


def test_malformed_records(make_run: MakeRun, records: SimpleNamespace) -> None:
    story = read_story(run := make_run([records.train(1), *MALFORMED, records.train(4)]))
    assert np.isnan(story.train["loss"][1]) and np.isnan(story.train["tokens_per_s"][2])
    assert report(run)


@pytest.mark.parametrize("bad", BAD_ROUTING)
def test_malformed_routing(make_run: MakeRun, records: SimpleNamespace, bad: dict[str, Any]) -> None:
    assert read_story(make_run([records.routing(1), {"kind": "routing", "step": 2, **bad}])).routing is None
    routing = read_story(
        make_run([{"kind": "routing", "step": 1, **bad}, records.routing(2), records.routing(3)], name="b")
    ).routing
    assert routing is not None and routing.steps.tolist() == [2, 3] and routing.max_vio.shape == (2, 3)


@pytest.mark.parametrize("config", ["", "{", "train: 1", "train: {steps: x}", "- 1", "[" * 500, "a: \x00"])
def test_malformed_configs(make_run: MakeRun, records: SimpleNamespace, config: str) -> None:
    story = read_story(make_run(records.whole_run(3), config=config))
    assert story.planned_steps is None and story.config_text == config


@pytest.mark.parametrize("text", ["[1]", "{", "", "[" * 100_000])
def test_malformed_environment(make_run: MakeRun, records: SimpleNamespace, text: str) -> None:
    run = make_run([])
    (run / "environment.json").write_text(text)
    assert read_story(run).environment == {}


def test_many_events(make_run: MakeRun, records: SimpleNamespace) -> None:
    page = report(make_run([*(records.event(step, message=f"m{step}.") for step in range(1000))]))
    assert "m999." in page and "m0." not in page and "The first 700 are left out" in page


def test_other_file_and_errors(make_run: MakeRun, records: SimpleNamespace, tmp_path: Path) -> None:
    run = make_run([records.event(0)])
    assert write_report(run, tmp_path / "x.html") == tmp_path / "x.html"
    assert not (run / "report.html").exists()
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot write"):
        write_report(run, tmp_path / "x.html" / "y.html")
    with pytest.raises(UserError, match="cannot write"):
        write_report(run, tmp_path / "nowhere" / "y.html")


@pytest.mark.parametrize("n", [0, 1, 319, 320, 321, 1000, 100_003])
def test_bands_keep_every_extreme(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = np.arange(n, dtype=float), rng.standard_normal(n)
    y[rng.random(n) < 0.1] = np.nan
    at, low, mean, high = bands(x, y)
    known = y[np.isfinite(y)]
    assert len(at) == len(low) == len(mean) == len(high) == min(320, len(known))
    if len(known):
        assert low.min() == known.min() and high.max() == known.max()
        assert np.all(low <= mean + 1e-12) and np.all(mean <= high + 1e-12) and np.all(np.diff(at) > 0)
        sizes = np.diff(np.arange(len(at)) * len(known) // len(at), append=len(known))
        assert np.isclose((mean * sizes).sum(), known.sum())


def test_long_runs_are_read_in_blocks(make_run: MakeRun, records: SimpleNamespace) -> None:
    steps = 4321
    run = make_run(None)
    lines = [json.dumps(records.train(step, moe=step % 2 == 0)) for step in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    story = read_story(run)
    assert np.array_equal(story.train["step"], np.arange(1, steps + 1))
    assert np.array_equal(np.isnan(story.train["max_vio"]), np.arange(1, steps + 1) % 2 == 1)
    assert {len(column) for column in story.train.values()} == {steps} and set(story.train) == set(TRAIN_KEYS)
