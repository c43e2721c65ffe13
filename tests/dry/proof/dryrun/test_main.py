"""The command without building anything: exit codes, refusals, and the memory that is predicted."""

import importlib.util
import re

import pytest

from mindmoe.config.load import load_config
from mindmoe.config.run import resolve
from mindmoe.host.errors import UserError
from mindmoe.models.gpt_oss.parameters import param_specs
from mindmoe.parallel.mesh import Mesh
from mindmoe.plan.auto import planned
from mindmoe.plan.calls.agree import CallCheck
from mindmoe.plan.calls.program import StepProgram
from mindmoe.plan.rank_memory import held_parameters, rank_memory
from mindmoe.proof.dryrun import main
from mindmoe.proof.dryrun.main import dryrun


def test_all_ranks_of_a_run_are_checked(laid, capsys):
    config, _ = laid("pp2,dp2,ep2")
    assert dryrun(config, 4, None, True, None) == 0
    assert "all 4 ranks agree" in capsys.readouterr().out


def test_disagreement_is_told_and_fails(laid, capsys, monkeypatch):
    monkeypatch.setattr(main, "agree", lambda *_, **__: CallCheck(("rank 1 does something else",), 3, 0))
    assert dryrun(laid("dp2")[0], 2, None, True, None) == 1
    out = capsys.readouterr().out
    assert "do NOT agree" in out and "rank 1 does something else" in out


def test_a_step_that_would_not_fit_is_refused_with_a_remedy(root):
    config = load_config(root / "configs" / "gpt-oss-120b.yaml", [])
    with pytest.raises(UserError, match=r"GiB on this machine .*weights 14\.3.* are free: try parallel\.zero=3"):
        dryrun(config, 512, 255, False, None)


@pytest.mark.parametrize(("rank", "message"), [(None, "nothing to do"), (4, "rank 4 is outside the mesh of 4 ranks")])
def test_mistakes_of_the_user(laid, rank, message):
    with pytest.raises(UserError, match=message):
        dryrun(laid("dp4")[0], 4, rank, False, None)


def test_the_degrees_must_fit_the_world(laid):
    with pytest.raises(UserError, match="cards=6"):
        dryrun(laid("dp2,tp2")[0], 6, 0, False, None)


@pytest.mark.parametrize("layout", ["dp4", "dp2,tp2,ep2", "pp2,dp2,zero1", "dp4,zero3", "pp2,dp2,zero2,ep2"])
def test_the_ranks_of_a_replica_hold_the_model_once(laid, layout):
    """Weights of all ranks, each divided by how many hold it, add up to the parameters of the model."""
    config, mesh = laid(layout)
    total = 0.0
    for rank in range(mesh.world):
        program = StepProgram(config, mesh, rank)
        for piece in program.pieces:
            names = [spec.name for spec in program.specs.values() if piece.holds(spec.name, program.tied)]
            for _, at in program.held(tuple(names)):
                total += at.box.size / len(at.replicas)
    specs = param_specs(config.model, config.moe).values()
    assert total == pytest.approx(sum(spec.size for spec in specs if spec.trainable))


def test_zero_leaves_a_share_of_the_state(root):
    """gpt-oss-120b at pp 4 and ep 8 on 512 ranks: a middle stage holds 9 layers and 16 of 128 experts."""
    states, parameters = {}, {}
    for zero in (0, 1, 3):
        config = resolve(load_config(root / "configs" / "gpt-oss-120b.yaml", [f"parallel.zero={zero}"]), 512)
        program = StepProgram(config, Mesh.build(config.parallel, 512), 255)
        states[zero], parameters[zero] = rank_memory(program), held_parameters(program)
    assert parameters[0] == parameters[1] == pytest.approx(3.82e9, rel=0.01)
    assert states[0].weights == pytest.approx(4 * parameters[0]) and states[0].optimizer == 2 * states[0].weights
    assert states[1].optimizer == pytest.approx(
        12 * parameters[0] / 16, rel=0.1
    )  # experts have 16 replicas, others 128
    assert states[3].weights == pytest.approx(4 * parameters[3], rel=1e-4)  # parts of a tensor are not quite equal
    assert states[3].weights == pytest.approx(states[0].weights / 16, rel=0.1)
    assert states[3].working > states[0].working + states[0].weights  # gathered, and kept for the backward pass


def derived(path, words, world, rank):
    """Parameters, predicted GiB and calls of a rank, as the page prints them."""
    run = planned(load_config(path, words), world)
    program = StepProgram(run, Mesh.build(run.parallel, world), rank)
    return f"{held_parameters(program):,}", f"{rank_memory(program).total / 2**30:.2f}", f"{len(program.calls())}"


def test_the_page_has_the_derived_figures_of_ranks_at_true_size(root):
    """What was measured stands beside them and is no figure of this test."""
    page = (root / "docs" / "cluster.md").read_text("utf-8")
    words = re.search(r"--rank 255 --out \S+ (.*\n.*)\n```", page)[1].replace("\\", "").split()
    rows = re.findall(r"^\| (\d+) \| \d \| ([\d,]+) \| ([\d.]+) \| [\d.]+ \| (\d+) \| \d+ \|$", page, re.MULTILINE)
    assert [int(rank) for rank, *_ in rows] == [0, 255, 511]
    for rank, *figures in rows:
        assert tuple(figures) == derived(root / "configs" / "gpt-oss-120b.yaml", words, 512, int(rank))


def test_the_page_has_the_predictions_that_its_script_makes(root):
    spec = importlib.util.spec_from_file_location("bench", root / "scripts" / "bench" / "rank_memory.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    page = (root / "docs" / "cluster.md").read_text("utf-8")
    block = page.split("<!-- dryrun:memory -->")[1]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\S.*) \| ([\d.]+) \| ([\d.]+) \| (.\d+)% \|$", block, re.MULTILINE)
    assert len(rows) >= 2
    for world, rank, layout, predicted, measured, error in rows:
        (words,) = [w for n, r, w in bench.RANKS if (n, r, bench.layout_name(w)) == (int(world), int(rank), layout)]
        assert predicted == derived(bench.CONFIG, [*bench.COMMON, *words], int(world), int(rank))[1]
        assert int(error) == pytest.approx(100 * (float(predicted) / float(measured) - 1), abs=1)
