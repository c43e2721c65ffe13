"""What a node believes of the files that others write."""

import json
import random
from pathlib import Path

import pytest

from mindmoe.host.errors import UserError
from mindmoe.host.position import read
from mindmoe.launch.check import device_addresses
from mindmoe.launch.cluster import Cluster
from mindmoe.launch.follow import follow
from mindmoe.launch.hosts import Host
from mindmoe.launch.local import Failure
from mindmoe.launch.shared import NodeStatus, Orders, SharedFolder

STATUS = NodeStatus(
    index=1,
    session="s",
    beat=4,
    name="b",
    address="10.0.0.2",
    port=4000,
    state="failing",
    problems=("no disk",),
    facts={"Python": "3.11"},
    failure=Failure(code=1, rank=3, message="rank 3", details="  line\n", time=5.0),
)
ORDERS = Orders(session="s", action="run", attempt=2, nodes=(0, 1), master=("10.0.0.1", 4000))
CLUSTER = Cluster.build(4, 2, [Host(name="a", address="10.0.0.1"), Host(name="b", address="10.0.0.2")])
VALUES = [None, True, 5, -1, 1e300, "x", [], {}, [5], {"a": 1}, 2**70, "\x1b[2J", [[]]]


@pytest.fixture
def shared(tmp_path: Path) -> SharedFolder:
    folder = SharedFolder(tmp_path)
    folder.create()
    folder.write_status(STATUS)
    folder.write_orders(ORDERS)
    CLUSTER.write(tmp_path)
    return folder


def test_what_is_written_is_read(shared):
    assert shared.read_status(1) == STATUS and shared.read_orders() == ORDERS and Cluster.read(shared.path) == CLUSTER


@pytest.mark.parametrize(
    "text", ["5", "[]", "{}", '{"a": 1}', "null", "NaN", '"x"', "{", "", "[" * 10**5, '{"a":1,"a":1}']
)
def test_no_content_ends_a_node(shared, text):
    for path in ("nodes/1.json", "orders.json", "cluster.json"):
        (shared.path / path).write_text(text)
    assert shared.read_status(1) is None and shared.read_orders() is None
    with pytest.raises(UserError, match=r"is no folder of a launch: .*cluster\.json"):
        Cluster.read(shared.path)


@pytest.mark.parametrize("seed", range(40))
def test_no_value_of_another_type_is_believed(shared, seed):
    """One value somewhere in each file is replaced by one of any type."""
    draw = random.Random(seed)
    for path in ("nodes/1.json", "orders.json", "cluster.json"):
        value = json.loads((shared.path / path).read_text())
        place = value
        while True:
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            inner = place[key]
            if not (isinstance(inner, (dict, list)) and inner and draw.random() < 0.7):
                break
            place = inner
        place[key] = draw.choice([other for other in VALUES if type(other) is not type(inner)])
        (shared.path / path).write_text(json.dumps(value))
    status, orders = shared.read_status(1), shared.read_orders()
    assert status is None or type(status.beat) is int and all(type(fact) is str for fact in status.facts.values())
    assert orders is None or type(orders.attempt) is int and all(type(node) is int for node in orders.nodes)
    try:
        assert Cluster.read(shared.path).needed == 2
    except UserError as error:
        assert "cluster.json" in str(error)


@pytest.mark.parametrize(
    ("key", "value"),
    [("index", 2), ("port", 70000), ("beat", -1), ("state", "asleep"), ("address", "a b"), ("address", "10.0.0.256")],
)
def test_a_status_that_cannot_be_is_none(shared, key, value):
    path = shared.path / "nodes" / "1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert shared.read_status(1) is None


@pytest.mark.parametrize(
    "change", [{"cards": 3}, {"cards": 0}, {"num_nodes": 3}, {"hosts": [{"name": "-o", "address": "a"}] * 2}]
)
def test_a_cluster_that_cannot_be_is_refused(shared, change):
    path = shared.path / "cluster.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="is no folder of a launch"):
        Cluster.read(shared.path)


def test_a_file_that_is_a_link_is_replaced_and_never_read(shared, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "file"
    for write, path in (
        (lambda: shared.write_status(STATUS), "nodes/1.json"),
        (lambda: shared.write_orders(ORDERS), "orders.json"),
    ):
        other.write_text((shared.path / path).read_text())
        (shared.path / path).unlink()
        (shared.path / path).symlink_to(other)
        assert (shared.read_status(1) if "nodes" in path else shared.read_orders()) is None
        before = other.read_text()
        write()
        assert other.read_text() == before and not (shared.path / path).is_symlink()


def test_a_folder_of_nodes_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "nodes").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="is a link"):
        SharedFolder(tmp_path / "launch").create()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("address_1=10.0.0.2\naddress_0=10.0.0.1\n", ("10.0.0.1", "10.0.0.2")),
        ("address_0=10.0.0.256\naddress_" + "9" * 5000 + "=10.0.0.1\n", ()),
        ('address_0="; rm"\n', ()),
    ],
)
def test_device_addresses_are_addresses(tmp_path, text, found):
    (tmp_path / "hccn.conf").write_text(text)
    assert device_addresses(tmp_path / "hccn.conf") == found


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        {"since": 1.0, "phases": [["a", 1, "0-99999999999", 1, True]], "calls": {}},
        {"since": 1.0, "phases": [], "calls": {"0-1048570,0-1048570": 1}},
        {"since": 1.0, "phases": [], "calls": {"0-4/0": 1}},
        {"since": 1.0, "phases": [["a", 1]], "calls": {}},
        {"since": "x", "phases": [], "calls": {}},
        {"since": 1.0, "phases": 5, "calls": {}},
        [],
        5,
    ],
)
def test_a_position_that_cannot_be_is_none(tmp_path, content):
    from mindmoe.host.position import _HEAD, _TAIL

    data = json.dumps(content).encode()
    (tmp_path / "x").write_bytes(_HEAD.pack(1, len(data)) + data + _TAIL.pack(1))
    assert read(tmp_path / "x") is None


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "train", "step": 1, "time": 9.0, "loss": "x"}',
        '{"kind": "train", "step": true, "time": 9.0}',
        '{"kind": "event", "step": 1, "time": 9.0, "message": 5}',
        '{"kind": 5, "step": 1, "time": 9.0}',
        '{"step": 1, "time": 9.0}',
        '{"kind": "train", "step": 1, "time": "x"}',
        "{}}",
        "{" + "[" * 5000,
    ],
)
def test_a_line_of_metrics_that_no_console_can_show_is_passed_over(tmp_path, line):
    good = '{"kind": "train", "step": 2, "time": 9.0, "loss": null}'
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{good}\n")
    assert [record["step"] for record in next(follow(tmp_path / "metrics.jsonl", 5.0))] == [2]
