"""The planner against published runs, and the reading of the file that holds them."""

import pytest

from mindmoe.errors import UserError
from mindmoe.planner.anchors import compare, error_summary, packaged_anchors, read_anchors

HEADER = "id,model,hardware,cards,seq,gbs,mbs,tp,pp,vpp,ep,cp,zero,forced_balance,tokens_per_s_per_card,step_s,source\n"
ROW = "X,gpt-oss-120b,H100,64,4096,512,1,1,4,1,8,1,1,yes,6000,,\n"


def test_published_step_times_are_met():
    """The target that the planner is held to: median error 15%, worst 35%."""
    comparisons = compare(packaged_anchors())
    typical, worst = error_summary(comparisons)
    assert len(comparisons) == 7
    assert typical <= 0.15
    assert worst <= 0.35


def test_runs_with_assumptions_are_near_but_for_the_known_one():
    """DualPipe hides the exchange of tokens, which the planner does not model."""
    comparisons = compare(packaged_anchors("anchors_apart"))
    errors = {comparison.anchor.name: abs(comparison.error) for comparison in comparisons}
    assert errors.pop("D10") > 0.35
    assert max(errors.values()) <= 0.2


def test_rows_are_read_as_they_stand(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + ROW + "Y,deepseek-v3,H100,256,4096,512,1,1,4,8,64,1,3,no,,8.18,script (full recompute)\n")
    first, second = read_anchors(path)
    assert first.measured_s == pytest.approx(512 * 4096 / (64 * 6000))
    assert (first.layout.dp, first.layout.schedule, first.workload.routing_time) == (16, "1f1b", "balanced")
    assert (second.layout.schedule, second.layout.chunks, second.layout.zero) == ("interleaved", 8, 3)
    assert (second.recompute, second.workload.routing_time, second.measured_s) == ("full", "p50", 8.18)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("X,,H100,64,4096,512,1,1,4,1,8,1,1,yes,6000,,\n", "line 2 lacks model"),
        ("X,gpt-oss-120b,H100,64,4096,512,1,3,4,1,8,1,1,yes,6000,,\n", "not a multiple"),
        ("X,gpt-oss-120b,H100,64,4096,many,1,1,4,1,8,1,1,yes,6000,,\n", "gbs='many'"),
        ("X,gpt-oss-120b,H100,64,4096,512,1,1,4,1,8,1,1,yes,,,\n", "neither step_s nor tokens_per_s_per_card"),
        ("X,gpt-9,H100,64,4096,512,1,1,4,1,8,1,1,yes,6000,,\n", "'gpt-9' is not on file"),
        ("", "holds no rows"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, row, message):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + row)
    with pytest.raises(UserError, match=message):
        read_anchors(path)


def test_a_missing_file_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_anchors(tmp_path / "none.csv")
