"""The planner against published runs, and the reading of the file that holds them."""

import pytest

from mindmoe.host.errors import UserError
from mindmoe.plan.anchors import compare, compare_rows, error_summary, packaged_anchors, read_anchors
from mindmoe.plan.step import split_layers

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
    with pytest.raises(UserError, match="does not exist"):
        read_anchors(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("count", "stages", "chunks", "split"),
    [(94, 32, 3, (0,) + (1,) * 94 + (0,)), (3, 2, 2, (1, 1, 1, 0)), (4, 6, 1, (0, 1, 1, 1, 1, 0))],
)
def test_embedding_and_head_may_be_pieces_of_their_own(count, stages, chunks, split):
    assert split_layers(count, stages, chunks, 1.5, "even") == split


@pytest.mark.slow
def test_a_layout_of_more_pieces_than_layers_is_predicted(tmp_path):
    """94 layers on 32 stages of 3 pieces, as Megatron counts them."""
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "Q,qwen3-235b-a22b,H100,256,4096,2048,1,2,32,3,8,1,1,yes,,24.2,b\n")
    (comparison,), refused = compare_rows(path)
    assert not refused and abs(comparison.error) < 0.35


GOOD = "good,qwen3-30b-a3b,H100,16,4096,1024,1,1,1,1,16,1,1,yes,13011,,a\n"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("B,qwen3-235b-a22b,H100,256,4096,2048,1,2,64,3,8,1,1,yes,,24.2,b\n", "192 pieces are more than the 94 layers"),
        (
            "B,qwen3-30b-a3b,/etc/hostname,16,4096,1024,1,1,1,1,16,1,1,yes,1,,\n",
            "/etc/hostname is not on file",
        ),
        ("B,qwen3-30b-a3b,H100,16,4096,1024,1,1,1,1,16,1,1,yes,nan,,\n", "tokens_per_s_per_card='nan' is not a number"),
        ("B,qwen3-30b-a3b,H100,16,4096,1024,1,1,1,1,16,1,1,yes,,1e400,\n", "step_s='1e400' is not a number"),
        (
            "B,qwen3-30b-a3b,H100,16,4096,99999999999,1,1,1,1,16,1,1,yes,1,,\n",
            "99999999999' is not a whole number",
        ),
        ("B,qwen3-30b-a3b,H100,16,4096,\u00b2,1,1,1,1,16,1,1,yes,1,,\n", "is not a whole number"),
        ("B,qwen3-30b-a3b,H100,16,4096,1024,1,1,1,1,16,1,9,yes,1,,\n", "zero='9' is not a whole number from 0 to 3"),
        ("B,qwen3-30b-a3b,H100,16,4096,1024,3,1,1,1,16,1,1,yes,1,,\n", "must divide gbs=1024"),
        ("B,qwen3-30b-a3b,H100,16,4096,8,1,1,1,1,16,1,1,yes,1,,\n", "must divide gbs=8"),
        ("B,qwen3-30b-a3b,H100,16,4096,1024,1,1,1,1,7,1,1,yes,1,,\n", "ep=7 must divide 128 experts"),
        ("B,qwen3-30b-a3b,H100,16,4096,1024,1,1,1,4,16,1,1,yes,1,,\n", "vpp=4 needs pp above 1"),
        ("B,qwen3-30b-a3b,H100,16,4096,33554432,1,1,2,1,8,1,1,yes,1,,\n", "too many to simulate"),
        ("\x1b[2J,qwen3-30b-a3b,H100\n", "lacks cards"),
        ("B\n", "lacks model"),
    ],
)
def test_a_row_that_cannot_be_predicted_ends_no_table(tmp_path, row, said):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + row + GOOD, encoding="utf-8")
    (comparison,), (refused,) = compare_rows(path)
    assert comparison.anchor.name == "good"
    assert said in refused and f": {path} line 2" in refused and refused.isprintable()


@pytest.mark.parametrize("text", ["id,model\n" + "x" * 200_000 + ",y\n", "id\n\x00\n"])
def test_what_is_no_csv_is_a_mistake_of_the_user(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(UserError):
        read_anchors(path)
