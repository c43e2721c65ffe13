"""Accelerators on file, and collectives held to the tables that MindSpeed ships."""

from importlib.resources import files

import pytest

from mindmoe.host.errors import UserError
from mindmoe.plan.hardware import hardware_names, load_hardware
from mindmoe.plan.network import RankSpan, all_gather, all_to_all, send, two_hop

LARGE = 2.0**30
A2 = load_hardware("ascend-910b2")
A3 = load_hardware("ascend-a3")


@pytest.mark.parametrize("name", hardware_names())
def test_every_figure_has_a_source(name):
    hardware = load_hardware(name)
    for figure in ("peak_tflops", "memory_gib", "hbm_tb_s", "link", "power_w", "storage_gb_s", "efficiency"):
        assert hardware.sources[figure].startswith("[")


def test_peaks_of_910b_follow_from_cores_and_clock():
    for name, cores, megahertz in (("ascend-910b1", 24, 1850), ("ascend-910b2", 24, 1800), ("ascend-910b3", 20, 1800)):
        assert load_hardware(name).peak() == pytest.approx(cores * megahertz * 1e6 * 8192, rel=1e-3)


def test_names_aliases_files_and_mistakes(tmp_path):
    assert load_hardware("Ascend-910B-A2") is A2
    with pytest.raises(UserError, match="not on file"):
        load_hardware("abacus")
    with pytest.raises(UserError, match="no fp8"):
        A2.peak("fp8")
    broken = tmp_path / "mine.yaml"
    broken.write_text("name: mine\n")
    with pytest.raises(UserError, match="does not describe an accelerator"):
        load_hardware(str(broken))


def test_a_file_of_measurements_replaces_the_table(tmp_path):
    own = A2.model_copy(update={"name": "mine", "hbm_tb_s": 1.1})
    path = tmp_path / "mine.yaml"
    path.write_text(own.model_dump_json())  # JSON is YAML
    assert load_hardware(str(path)) == own


@pytest.mark.parametrize(("ranks", "rate"), [(2, 37), (4, 69), (8, 119), (16, 40.1), (32, 30.2), (64, 27.0)])
def test_all_to_all_of_a2_nodes(ranks, rate):
    """GiB/s of tensor bytes, MindSpeed core/memory/compress/utils.py; one efficiency for all sizes, hence 15%."""
    assert LARGE / all_to_all(A2, RankSpan(ranks, 1), LARGE) / 2**30 == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize(("ranks", "rate"), [(2, 36), (4, 73), (8, 147), (16, 138)])
def test_all_gather_of_a2_nodes(ranks, rate):
    assert LARGE / all_gather(A2, RankSpan(ranks, 1), LARGE) / 2**30 == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize(("ranks", "rate"), [(4, 229), (8, 174), (16, 154), (32, 144), (64, 137)])
def test_all_to_all_of_a3(ranks, rate):
    assert LARGE / all_to_all(A3, RankSpan(ranks, 1), LARGE) / 2**30 == pytest.approx(rate, rel=0.15)


def test_a_group_of_one_costs_nothing():
    one = RankSpan(1, 1)
    assert all_gather(A2, one, LARGE) == all_to_all(A2, one, LARGE) == two_hop(A2, one, 1e4, 5760, 4, 1.0) == 0.0


@pytest.mark.parametrize("ranks", [2, 8, 16, 64, 128])
@pytest.mark.parametrize("top_k", [1, 4, 8])
def test_two_hops_never_send_more_than_one_all_to_all(ranks, top_k):
    """Up to the latency of the second hop, for it sends each token at most once where the other sends every copy."""
    rows, width, group = 65536.0, 5760.0, RankSpan(ranks, 1)
    extra = 1e-6 * (A2.link.launch_us + 4 * A2.link.hop_us)
    assert two_hop(A2, group, rows, width, top_k, 1.0) <= all_to_all(A2, group, rows * width * top_k) + extra


def test_group_limited_routing_spares_the_network():
    free, limited = (two_hop(A2, RankSpan(64, 1), 65536.0, 14336.0, 8, share) for share in (1.0, 0.5))
    assert limited == pytest.approx(free * 4 / (8 * (1 - (7 / 8) ** 8)), rel=0.01)


def test_far_ranks_use_the_port_and_near_ones_the_link():
    assert send(A2, 8, LARGE) == pytest.approx(LARGE / 25e9, rel=1e-2)
    assert send(A2, 1, LARGE) == pytest.approx(LARGE / 19.5e9, rel=1e-2)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cards_per_node:", "cards_per_nod:", "unknown key; did you mean cards_per_node?"),
        ("cards_per_node: 8", "cards_per_node: true", "cards_per_node=true: must be a whole number"),
        ("name: h100", "name: [&a x, *a]", "name=[...]: must be text"),
        ("name: h100", "name: h100\nname: h200", "name"),
        ("name: h100", "name: !!python/object:os.system h100", "is not allowed: remove it"),
        ("memory_gib: 79.6", "memory_gib: 1e308", "memory_gib=1e308: must be at most 3.40282e+38"),
    ],
)
def test_a_mistake_in_a_hardware_file_names_file_and_key(tmp_path, old, new, said):
    text = (files("mindmoe.plan") / "hardware" / "h100.yaml").read_text()
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as info:
        load_hardware(str(path))
    assert f"{path}:" in str(info.value) and said in str(info.value)
