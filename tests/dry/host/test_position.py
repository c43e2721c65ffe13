"""The record of where a rank is, read from another process as the launcher reads it."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mindmoe.host import position
from mindmoe.host.position import during, ranks_in, read, record_in, spans


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(position, "_RECORD", position._Record())
    record_in(tmp_path / "rank_0.position")
    yield tmp_path / "rank_0.position"


def test_phases_are_read_with_group_call_and_number(file):
    before = time.time()
    with during("step", number=5), during("gradients (graph)"):
        for _ in range(3):
            with during("all_to_all_v over ep", (0, 1)):
                at = read(file)
    assert str(at) == "step 5, gradients (graph), all_to_all_v over ep [0-1], call 3"
    assert [phase.first for phase in at.phases] == [True, True, False]
    assert at.calls == {(0, 1): 3}
    assert before <= at.since <= time.time()
    after = read(file)
    assert after.phases == () and after.count > at.count and after.calls == {(0, 1): 3}


def test_the_count_grows_with_every_event(file):
    counts = [read(file).count]
    with during("a"):
        counts.append(read(file).count)
        with during("b", [0, 2]):
            counts.append(read(file).count)
        counts.append(read(file).count)
    counts.append(read(file).count)
    assert counts == list(range(1, 6))


def test_a_rank_that_raises_leaves_where_it_was(file):
    with pytest.raises(RuntimeError), during("step", number=1), during("update", (0, 1)):
        raise RuntimeError
    assert str(read(file)) == "step 1, update [0-1], call 1"
    with during("saving"):  # the exception was handled: what it ended is gone
        assert str(read(file)) == "saving"


def test_a_phase_goes_on_after_an_exception_inside_it_was_handled(file):
    with during("step", number=1):
        with pytest.raises(RuntimeError), during("a"), during("b"):
            raise RuntimeError
        with during("c"):
            assert str(read(file)) == "step 1, c"
    assert str(read(file)) == "no phase"


def test_nothing_is_recorded_outside_a_launch(tmp_path, monkeypatch):
    monkeypatch.setattr(position, "_RECORD", position._Record())
    with during("step", number=1):
        assert list(tmp_path.iterdir()) == []
    assert read(tmp_path / "rank_0.position") is None


def test_a_file_that_cannot_be_written_fails_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(position, "_RECORD", position._Record())
    record_in(tmp_path / "missing" / "rank_0.position")
    with during("step", number=1):
        pass


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff" * 100, b'{"phases": []}'])
def test_a_file_that_is_no_record_is_none(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert read(tmp_path / "x") is None


def test_a_reader_never_sees_a_half_written_record(tmp_path):
    """Another process enters and leaves nested phases of very different length as fast as it can."""
    path = tmp_path / "rank_0.position"
    writer = (
        "import sys, pathlib\nfrom mindmoe.host.position import during, record_in\n"
        "record_in(pathlib.Path(sys.argv[1]))\n"
        "while True:\n"
        "    with during('a' * 3000, range(3)), during('b', range(2)): pass\n"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(path)])
    try:
        seen = 0
        while seen < 300:
            assert process.poll() is None
            if (at := read(path)) is not None and at.count > 1:
                seen += 1
                names = [phase.name for phase in at.phases]
                assert names in ([], ["a" * 3000], ["a" * 3000, "b"])
                assert (at.count - 1) % 4 in ({0: {0}, 1: {1, 3}, 2: {2}}[len(names)])
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ((), ""),
        ((3,), "3"),
        ((0, 1), "0-1"),
        ((0, 2), "0,2"),
        ((0, 8, 16, 24), "0-24/8"),
        ((0, 1, 2, 8, 9, 10), "0-2,8-10"),
        ((5, 4), "5,4"),
        (tuple(range(512)), "0-511"),
    ],
)
def test_ranks_in_short(ranks, text):
    assert spans(ranks) == text and ranks_in(text) == ranks


def test_ranks_in_short_of_any_order_are_read_back():
    draw = random.Random(0)
    for _ in range(300):
        ranks = tuple(draw.sample(range(40), draw.randrange(12)))
        assert ranks_in(spans(ranks)) == ranks
