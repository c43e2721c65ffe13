"""Config, planner, dry run and building agree about every layout: which can be, and why the others cannot."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from mindmoe.config.load import load_config
from mindmoe.config.run import RunConfig, resolve
from mindmoe.host.errors import ConfigError, UserError
from mindmoe.models.gpt_oss.parameters import layer_specs, param_specs
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.legality import RULES, facts
from mindmoe.parallel.mesh import Mesh
from mindmoe.parallel.sequence import token_positions
from mindmoe.parallel.sharding import Placement
from mindmoe.pipeline.schedule import ScheduleName, steps_of
from mindmoe.pipeline.split import build_pieces
from mindmoe.plan.auto import workload_of
from mindmoe.plan.calls.agree import agree
from mindmoe.plan.calls.program import StepProgram
from mindmoe.plan.hardware import load_hardware
from mindmoe.plan.layout import CONFIG_RECOMPUTE, RECOMPUTES, ZEROS, Layout
from mindmoe.plan.search import Legality, meshes
from mindmoe.plan.step import CostModel

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
MODELS = ["gpt-oss-20b", "gpt-oss-120b", "moe-10b-a1b", "dense-warmup"]
ODD = [  # each breaks one rule where the shipped models would not
    "model.num_attention_heads=24 model.num_key_value_heads=6",
    "model.num_attention_heads=6 model.num_key_value_heads=6",
    "model.vocab_size=65538",
    "moe.num_shared_experts=1 model.intermediate_size=690",
    "model.intermediate_size=690",
    "moe.num_experts=12 parallel.ep=1",
    "model.num_hidden_layers=3",
    "train.seq_length=20",
    "moe.balance.aux_over=exact",
]
UNSUPPORTED = {
    "tp x cp must divide seq_length (twice where cp > 1)": "a tensor rank's tokens are to lie in one piece",
    "stages that share tied embeddings have no zero 2": "their gradients are complete at different times",
    "stages recompute anyway, a policy is of use under zero 3 alone": "it would cost time for nothing",
    "the zb_h1 schedule has no recomputation": "the two halves of its backward pass would both recompute",
    "a dense model has etp 1 or tp": "there is nothing to split",
}
"""Rules that refuse what could be cut, and why; every other one refuses what building fails on."""


def run_of(model: str, *words: str) -> RunConfig:
    """A preset whose batch fits many layouts, run op by op."""
    return load_config(CONFIGS / f"{model}.yaml", ["train.mode=pynative", "train.precision=bf16", *words])


def under(run: RunConfig, layout: Layout) -> RunConfig:
    """The run under a layout, not checked."""
    chosen = {name: value for name, value in layout.facts().items() if name != "micro_batch_size"}
    parallel = ParallelConfig.model_construct(**(dict(ParallelConfig()) | chosen))
    train = run.train.model_copy(update={"micro_batch_size": layout.micro_batch_size})
    return run.model_copy(update={"parallel": parallel, "train": train})


def is_legal(run: RunConfig, layout: Layout) -> bool:
    """Whether the config takes it."""
    try:
        resolve(under(run, layout), layout.cards)
    except ConfigError:
        return False
    return True


def broken(run: RunConfig, layout: Layout) -> set[str]:
    """The rules that a layout breaks, in words."""
    known = facts(dict(under(run, layout)), cards=layout.cards)
    return {rule.says for rule in RULES if rule.ask(known) is not None}


def fails(run: RunConfig, layout: Layout) -> str | None:
    """What fails when the first and the last rank are cut out of the run, without the table of rules."""
    config = under(run, layout)
    rows, count = layout.dp * layout.micro_batch_size, run.train.global_batch_size
    if layout.dp * layout.tp * layout.pp * layout.cp != layout.cards or count % rows:
        return "the batch"
    pieces = build_pieces(run.model, config.parallel)
    if any(not piece.layers for piece in pieces):
        return "a stage without layers"
    if layout.ep > 1 and run.moe is None:
        return "no experts"
    try:
        counts_first = run.moe is not None and run.moe.balance.aux_over == "exact"
        steps_of(layout.schedule, layout.pp, count // rows, layout.chunks, counts_first)
        mesh = Mesh.build(config.parallel, layout.cards)
        table = param_specs(run.model.model_copy(update={"num_hidden_layers": 0}), run.moe).values()
        for rank in (0, layout.cards - 1):
            token_positions(run.train.seq_length, mesh, rank)
            for spec in [*table, *layer_specs(run.model, run.moe, 0)]:
                placement = Placement.of(spec, mesh, rank, tuple(range(layout.pp)))
                box = placement.box
                assert rank in placement.replicas
                cut = next((dim for dim, axis in enumerate(spec.axes) if axis in ("heads", "kv_heads")), None)
                if cut is not None and box.shape[cut] % (spec.shape[cut] // spec.heads):
                    return f"a head of {spec.name}"
    except (AssertionError, UserError, ValueError) as error:
        return str(error)
    return None


def of_degrees(mesh: Layout) -> dict[str, int]:
    return {axis: getattr(mesh, axis) for axis in ("dp", "tp", "pp", "ep", "cp", "etp")}


def everything(mesh: Layout) -> Iterator[Layout]:
    """All layouts of some degrees."""
    for size, schedule, chunks, zero, recompute in product((1, 3), get_args(ScheduleName), (1, 2), ZEROS, RECOMPUTES):
        yield Layout(
            **of_degrees(mesh),
            micro_batch_size=size,
            schedule=schedule,
            chunks=chunks,
            zero=zero,
            recompute=recompute,
        )


@pytest.mark.parametrize(
    ("cards", "model", "words"),
    [
        *((12, model, "") for model in MODELS),
        *((8, "moe-10b-a1b", words) for words in ODD),
        *(pytest.param(64, model, "", marks=pytest.mark.slow) for model in MODELS),
    ],
)
def test_what_the_table_allows_can_be_built_and_what_it_refuses_cannot(cards, model, words):
    run = run_of(model, f"train.global_batch_size={cards // 2}", "train.micro_batch_size=1", *words.split())
    legal = 0
    for mesh in meshes(cards, run.moe.num_experts if run.moe else 0):
        for more in ({}, {"schedule": "interleaved", "chunks": 2}) if mesh.pp > 1 else ({},):
            layout = Layout(**of_degrees(mesh), zero=0, **more)
            why, wrong = broken(run, layout), fails(run, layout)
            legal += not why
            assert wrong is None or why, f"{layout}: legal, but {wrong}"
            assert wrong is not None or why <= UNSUPPORTED.keys(), f"{layout}: can be built, but {why}"
    assert legal > 10


@pytest.mark.parametrize("cards", [4, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", [*MODELS, "moe-10b-a1b tied", "moe-10b-a1b exact"])
def test_planner_and_config_agree_about_every_layout(model, cards):
    name, _, more = model.partition(" ")
    words = {"": [], "tied": ["model.tie_word_embeddings=true"], "exact": ["moe.balance.aux_over=exact"]}[more]
    run = run_of(name, "train.global_batch_size=24", "train.micro_batch_size=1", *words)
    costs = CostModel(load_hardware("ascend-910b2"), workload_of(run))
    legality, seen = Legality(run, costs, cards), set[bool]()
    for mesh in meshes(cards, run.moe.num_experts if run.moe else 0):
        for layout in everything(mesh):
            if layout.recompute not in CONFIG_RECOMPUTE:
                continue
            legal, _ = legality.policies(layout)
            policy = ZEROS.index(layout.zero), RECOMPUTES.index(layout.recompute)
            planner = not legality.mesh(layout) and not legality.pipeline(layout) and bool(legal[policy])
            assert planner is is_legal(run, layout), (layout, broken(run, layout))
            seen.add(planner)
    assert seen == {True, False}


@pytest.mark.parametrize("degrees", [{"tp": 16}, {"tp": 4, "ep": 2, "etp": 2}, {"tp": 16, "dp": 2, "etp": 4, "ep": 8}])
def test_layouts_that_one_of_them_once_refused(degrees):
    run, layout = run_of("gpt-oss-20b"), Layout(**degrees)
    costs = CostModel(load_hardware("ascend-910b2"), workload_of(run))
    assert is_legal(run, layout) and fails(run, layout) is None
    assert Legality(run, costs, layout.cards).mesh(layout) is None
    estimate = costs.estimate(layout)
    assert estimate.step_s > 0 and estimate.memory.total > 0


def test_every_rule_can_be_asked_by_the_planner():
    run = run_of("gpt-oss-20b")
    legality = Legality(run, CostModel(load_hardware("ascend-910b2"), workload_of(run)), 8)
    asked = [rule for name, rules in vars(legality).items() if name.startswith("_of_") for rule in rules]
    assert len(asked) == len(RULES) == len({rule.says for rule in RULES})


@pytest.mark.slow
def test_the_ranks_of_every_legal_layout_agree():
    """Each rank's collectives, derived without building it, have their partners; policies take turns."""
    words = ["model.vocab_size=384", "moe.dispatch.capacity_chunk=8", "train.micro_batch_size=1"]
    run, legal = load_config(CONFIGS / "equiv.yaml", words), 0
    policies = [policy for mesh in [Layout()] for policy in everything(mesh)]
    for number, mesh in enumerate(meshes(8, 16)):
        turn = policies[(37 * number) % len(policies)]
        choices = {name: getattr(turn, name) for name in ("zero", "recompute", "schedule", "chunks")}
        for more in ({}, choices):
            layout = Layout(**of_degrees(mesh), **more)
            if is_legal(run, layout) and layout.recompute in CONFIG_RECOMPUTE:
                config = resolve(under(run, layout), 8)
                grid = Mesh.build(config.parallel, 8)
                programs = [StepProgram(config, grid, rank).calls() for rank in range(8)]
                assert agree(programs, rendezvous=True).problems == (), layout
                legal += 1
    assert legal > 50
