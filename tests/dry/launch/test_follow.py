"""The launcher's view of a metrics file that a worker writes, repairs and replaces."""

import json
import os

from mindmoe.launch.follow import follow


def line(step: int, time: float = 10.0) -> str:
    return json.dumps({"kind": "train", "step": step, "time": time}) + "\n"


def steps(records: list[dict]) -> list[int]:
    return [record["step"] for record in records]


def test_new_records_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = follow(path, since=5.0)
    assert next(records) == []
    path.write_text(line(1))
    assert steps(next(records)) == [1]
    with path.open("a") as file:
        file.write(line(2) + line(3)[:9])
    assert steps(next(records)) == [2]
    with path.open("a") as file:
        file.write(line(3)[9:])
    assert steps(next(records)) == [3]
    assert next(records) == []


def test_records_of_an_earlier_start_are_passed_over_also_after_a_rewrite(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, 1.0) + line(2, 2.0) + line(3, 3.0))
    records = follow(path, since=5.0)
    assert next(records) == []
    aside = tmp_path / "new"
    aside.write_text(line(1, 1.0) + line(2, 2.0))
    os.replace(aside, path)
    with path.open("a") as file:
        file.write(line(3, 6.0))
    assert steps(next(records)) == [3]
