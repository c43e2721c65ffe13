"""Collectives in the world, in pairs and in a group of three: values, gradients, dtypes and the probe."""

import json

ROUNDING = 1e-6  # of sums of up to four fp32 numbers near one


def test_collectives_are_those_of_numpy(start_ranks, tmp_path):
    start_ranks("collectives.py", 4, str(tmp_path))
    for rank in range(4):
        report = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        # 5 verbs in 4 dtypes, 4 gradients, 4 checks on the host, 4 verbs in 2 large sizes
        assert len(report["apart"]) == (3 if rank == 2 else 4) * (5 * 4 + 4 + 4 + 4 * 2)
        wrong = {check: apart for check, apart in report["apart"].items() if apart > ROUNDING}
        assert not wrong
        moved = [apart for check, apart in report["apart"].items() if "large" in check and "reduce" not in check]
        assert max(moved) == 0.0
        exact = [apart for check, apart in report["apart"].items() if check.endswith(("int32", "bf16", "fp16"))]
        assert max(exact) == 0.0
        assert "what ranks [1] sent did not arrive" in report["probe"] and "world" in report["probe"]
