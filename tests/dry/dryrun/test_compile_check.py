"""What is read from a compiled graph, and what cannot be compiled."""

import shutil
from collections import Counter

import pytest
from rich.console import Console

from mindmoe.dryrun.compile_check import collectives_in, compile_check
from mindmoe.dryrun.stubs import environment
from mindmoe.errors import UserError

GRAPH = """
  %12([CNode]1) = AllGather(%11) {instance name: a} primitive_attrs: {rank_size: I64(2), group: "mindmoe_4_6"}
  %13([CNode]2) = ReduceScatter(%12) primitive_attrs: {op: "sum", group: "mindmoe_4_6", fusion: I64(0)}
  %14([CNode]3) = AllGather(%13) primitive_attrs: {group: "mindmoe_4_6"}
  %15([CNode]4) = AllReduce(%14) primitive_attrs: {group: "nccl_world_group", op: "sum"}
  %16([CNode]5) = MatMul(%15, %15) primitive_attrs: {transpose_b: Bool(1)}
"""


def test_collectives_are_counted_by_group():
    assert collectives_in(GRAPH, 8) == Counter(
        {("all_gather", (4, 6)): 2, ("reduce_scatter", (4, 6)): 1, ("all_reduce", tuple(range(8))): 1}
    )


@pytest.mark.parametrize("layout", ["dp2,ep2", "dp2,full,graph"])
def test_what_is_not_compiled_whole_is_refused(laid, layout):
    with pytest.raises(UserError, match="needs a compiled step"):
        compile_check(Console(), *laid(layout), 0)


def test_a_missing_tool_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "gcc" else tool)
    with pytest.raises(UserError, match="needs gcc: install gcc and binutils"):
        environment(tmp_path)
