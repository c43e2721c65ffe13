"""The host model itself: every check fires on a kernel that breaks its rule, and instructions do what the
documentation's examples say."""

import subprocess

import numpy as np
import pytest
from host_model import ROOT, KernelError, from_bf16, to_bf16
from test_sources import VECTOR_API

ORDER = {  # broken rule -> what the model must say
    "V reads what V wrote": "RAW hazard in UB.*missing PipeBarrier",
    "V overwrites what V wrote": "WAW hazard",
    "V overwrites what V reads": "WAR hazard",
    "V updates in place what V reads": "WAR hazard",
    "V reads what MTE2 loads": "RAW hazard.*pipe V is not ordered after pipe MTE2",
    "MTE2 overwrites what V reads": "pipe MTE2 is not ordered after pipe V",
    "MTE3 stores what V writes": "RAW hazard.*pipe MTE3 is not ordered after pipe V",
    "S reads what V writes": "GetValue: RAW hazard",
    "V reads what S writes": "pipe V is not ordered after pipe S",
    "MTE2 reads GM that MTE3 writes": "RAW hazard in GM",
    "a flag orders only what precedes it": "RAW hazard",
    "a repeat reads an earlier one": "a repeat reads what an earlier repeat",
    "uninitialised": "read of uninitialised UB",
    "flag set twice": "set twice",
    "wait before set": "waited for before it is set",
    "flag left set": "SetFlag without WaitFlag",
    "event id 8": "outside \\[0, 8\\)",
    "nine event ids": "all 8 ids",
}
QUEUES = {
    "double free": "FreeTensor: the buffer is not held",
    "enqueue what is free": "EnQue: the buffer is not held",
    "dequeue from an empty queue": "queue is empty",
    "allocate beyond the buffers": "no free buffer of 1",
    "exceed the depth": "queue depth 1 exceeded",
    "never freed": "never freed",
    "tensor of another queue": "does not belong",
    "queue without buffers": "InitBuffer was not called",
    "InitBuffer twice": "InitBuffer\\(num",
    "UB overflow": "UB overflow",
    "65 buffers": "more than 64 buffers",
    "buffer view too long": "TBuf::Get",
    "tensor offset too long": "is past its",
    "scalar index too long": "index 8 of 8",
}
OPERANDS = {
    "misaligned dst": "dst must start on 32",
    "misaligned src": "src must start on 32",
    "operand overrun": "operand ends at byte",
    "count overrun": "65 elements into a tensor",
    "count 0": "element count 0",
    "misaligned dst of a masked instruction": "Add: dst must start on 32",
    "misaligned src of a masked instruction": "Add: src must start on 32",
    "misaligned dst of a block reduction": "BlockReduceSum: dst must start on 32",
    "block reduction of 256 repeats": "repeat count 256",
    "whole reduction past dst": "WholeReduceSum: dst ends at byte",
    "block reduction past dst": "BlockReduceSum: dst ends at byte",
    "misaligned dst of a whole reduction": "WholeReduceSum: dst must start on 4",
    "misaligned offsets of a gather": "Gather: src must start on 32",
    "misaligned src of a gather": "Gather: src must start on 32",
    "other select mode": "VSEL_TENSOR_SCALAR_MODE",
    "short select mask": "mask tensor too short",
    "misaligned select mask": "mask must start on 32",
    "misaligned dst of Sort32": "Sort32: dst must start on 32",
    "misaligned scores of Sort32": "scores must start on 32",
    "misaligned indices of Sort32": "indices must start on 32",
    "Sort32 of 256 repeats": "repeat count 256",
    "misaligned dst of MrgSort": "MrgSort: dst must start on 32",
    "MrgSort with suspension": "one repeat, no suspension",
    "MrgSort into a short tensor": "dst is shorter than 16 pairs",
    "misaligned list of MrgSort": "list must start on 8",
    "misaligned dst of GatherMask": "GatherMask: dst must start on 32",
    "GatherMask in normal mode": "counter mode",
    "repeat 256 wraps to 0": "repeat count 0",
    "reduce repeat 256": "repeat count 256",
    "mask of 65 lanes": "mask 65",
    "mask of 0 lanes": "mask 0",
    "dst block stride 0": "dstBlkStride is 0",
    "reduction onto its source": "dst overlaps src",
    "block reduction onto its source": "dst overlaps src",
    "value and index reduction": "ORDER_ONLY_VALUE",
    "comparison of part of a repeat": "not whole repeats",
    "rounding of a widening cast": "round mode",
    "no rounding of a narrowing cast": "round mode",
    "gather beyond the source": "offset 32 of 32",
    "Sort32 of a short table": "operand shorter",
    "MrgSort of lists 1 and 3": "validBit 5",
    "MrgSort onto its source": "overlaps dst",
    "MrgSort of a short list": "list 0 is shorter",
    "GatherMask into a short tensor": "dst is shorter",
    "pattern 8": "pattern 8",
}
MEMORY = {
    "DataCopy of part of a block": "not whole blocks",
    "DataCopy overrun": "64 bytes into a tensor of 32",
    "DataCopy to an odd place": "dst must start on 32",
    "store of part of a block": "UB->GM: 36 bytes are not whole blocks",
    "store from an odd place": "src must start on 32",
    "store overrun": "64 bytes from a tensor of 32",
    "store past the GlobalTensor": "UB->GM: byte 32 of a GlobalTensor of 16",
    "DataCopy within the machine but past the GlobalTensor": "GM->UB: byte 64 of a GlobalTensor of 32",
    "store within the machine but past the GlobalTensor": "UB->GM: byte 64 of a GlobalTensor of 32",
    "4096 blocks": "blockCount 4096",
    "4096 blocks of a store": "UB->GM: blockCount 4096",
    "padded load to an odd place": "dst must start on 32",
    "padded load overrun": "DataCopyPad GM->UB: byte 64 of a tensor of 32",
    "padded load past the GlobalTensor": "DataCopyPad GM->UB: byte 12 of a GlobalTensor of 8",
    "padded store from an odd place": "src must start on 32",
    "padded store overrun": "DataCopyPad UB->GM: byte 36 of a tensor of 32",
    "padded store past the GlobalTensor": "DataCopyPad UB->GM: byte 12 of a GlobalTensor of 8",
    "padded load of what MTE3 writes": "DataCopyPad GM->UB: RAW hazard in GM",
    "padded load onto what V reads": "DataCopyPad GM->UB: WAW hazard in UB",
    "padded store of what V writes": "DataCopyPad UB->GM: RAW hazard in UB",
    "store onto a store in flight": "WAW hazard in GM",
    "GlobalTensor index": "GlobalTensor index 256 of 256",
    "empty block": "blockLen 0",
    "padding of 36 bytes": "more than 32 bytes",
    "read past the GlobalTensor": "of a GlobalTensor of",
    "GlobalTensor offset": "GlobalTensor offset 100000",
    "outside every buffer": "outside every buffer",
    "write to an input": "write to the input",
    "scalar read of an output": "stale cache line",
    "two cores write": "cross-core race",
    "one core writes, one reads": "cross-core race",
    "two cores add without atomics on one": "cross-core race",
    "a core misses the barrier": "the device would hang",
    "atomic left on": "atomic add left on",
}
CUBE = {
    "transposed A not declared": "not declared transposable",
    "transposed B not declared": "MatmulType B is not declared",
    "right operand past the tensor": "of a GlobalTensor of",
    "larger than the tiling": "exceeds the single-core shape",
    "object not initialised": "not initialised",
    "operand past the tensor": "of a GlobalTensor of",
    "columns exceed the pitch": "exceed the row pitch",
    "cube overwrites what MTE2 reads": "pipe CUBE is not ordered after pipe MTE2",
}
RULES = ORDER | QUEUES | OPERANDS | MEMORY | CUBE


def run(driver, name, x=None, cores=1):
    source = np.zeros(256, np.float32) if x is None else np.resize(np.asarray(x, np.float32), 256)
    out = np.zeros(256, np.float32)
    driver("model")("run", [source, np.frombuffer(name.encode(), np.uint8)], [out], [cores])
    return out


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_reported(driver, rule):
    with pytest.raises(KernelError, match=RULES[rule]):
        run(driver, rule, cores=2 if rule in MEMORY else 1)


def test_every_broken_rule_is_in_the_table(driver):
    with pytest.raises(KernelError) as names:
        driver("model")("list", [], [], [])
    assert set(str(names.value).split("\n")) - {""} <= set(RULES)


def pairs(out, n):
    """(score, index) pairs."""
    return out[: 2 * n : 2], out[1 : 2 * n : 2].view(np.int32)


def test_sort32_is_descending_and_keeps_the_order_of_ties(driver):
    x = np.array([3, 1, 3, 2] * 8)
    scores, index = pairs(run(driver, "Sort32", x), 32)
    order = np.argsort(-x, kind="stable")
    assert (scores == x[order]).all() and (index == order).all()


def test_mrgsort_takes_equal_scores_from_the_earlier_list(driver):
    lists = np.array([[9, 5, 5, 1], [8, 5, 2, 0], [5, 4, 3, 2], [7, 6, 5, 4]], np.float32)
    x = np.zeros((4, 4, 2), np.float32)
    x[..., 0], x[..., 1] = lists, np.arange(16, dtype=np.int32).reshape(4, 4).view(np.float32)
    scores, index = pairs(run(driver, "MrgSort", x.ravel()), 16)
    order = np.argsort(-lists.ravel(), kind="stable")
    assert (scores == lists.ravel()[order]).all() and (index == order).all()


def test_gathermask_patterns(driver):
    x = np.arange(256)
    assert (run(driver, "GatherMask 2", x)[:7] == [1, 3, 5, 17, 19, 21, -1]).all()  # odd lanes of two repeats
    assert (run(driver, "GatherMask 4", x)[:5] == [1, 5, 9, 13, -1]).all()  # second of every four


def test_broadcasts_and_reductions(driver):
    x = np.arange(256)
    assert (run(driver, "Brcb", x)[:128] == np.repeat(np.arange(16), 8)).all()
    reduced = run(driver, "BlockReduceSum", x)[:9]
    assert (reduced == [28, -1, -1, -1, -1, -1, -1, 56 + 57 + 58 + 59, -1]).all()  # unmasked blocks keep the old value
    assert (run(driver, "WholeReduceMax", x)[:6] == [9, -1, 73, -1, 137, -1]).all()
    row = np.arange(128) + np.repeat([0, 8], 64) + np.tile(np.arange(8), 16)
    assert (run(driver, "broadcast block", x)[:128] == row).all()
    assert (run(driver, "Gather", x)[:8] == np.arange(15, -1, -2)).all()


# example -> its first results on 256 positive numbers; what follows keeps the -1 it held
EXAMPLES = {
    "Add": lambda x: x[:70] + x[128:198],
    "Sub": lambda x: x[:70] - x[128:198],
    "Mul": lambda x: x[:70] * x[128:198],
    "Div": lambda x: x[:70] / x[128:198],
    "Max": lambda x: np.maximum(x[:70], x[128:198]),
    "Min": lambda x: np.minimum(x[:70], x[128:198]),
    "Adds": lambda x: x[:65] + np.float32(2.5),
    "Muls": lambda x: x[:65] * np.float32(-3),
    "Maxs": lambda x: np.maximum(x[:65], 9),
    "Mins": lambda x: np.minimum(x[:65], 9),
    "Exp": lambda x: np.exp(x[:65]),
    "Ln": lambda x: np.log(x[:65]),
    "Axpy": lambda x: 2 * x[:65] - 1,
    "every second block": lambda x: strides(x),
    "WholeReduceSum": lambda x: [x[:64].sum(), -1, -1, x[64:128].sum()],
    "BlockReduceMax": lambda x: x[:128].reshape(16, 8).max(1),
    "Duplicate by bits": lambda x: np.where(np.arange(192) % 2 + (np.arange(192) // 64 == 1), -1, 7),
    "CreateVecIndex, ShiftRight and Cast": lambda x: np.arange(5, 69) >> 2,
    "GatherMask 1": lambda x: x[:128:2],
    "GatherMask 3": lambda x: x[:128:4],
    "GatherMask 5": lambda x: x[2:128:4],
    "GatherMask 6": lambda x: x[3:128:4],
    "GatherMask 7": lambda x: x[:128],
}


def strides(x):
    """Twice 16 lanes, whose blocks land on every second block; the second repeat 16 blocks further."""
    out = np.full(152, -1, np.float32)
    for to, start in ((0, 0), (16, 8), (128, 64), (144, 72)):
        out[to : to + 8] = 2 * x[start : start + 8]
    return out


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_instruction_does_what_its_table_says(driver, name):
    x = np.random.default_rng(1).integers(1, 40, 256).astype(np.float32) / 4
    want = np.asarray(EXAMPLES[name](x), np.float32)
    out = run(driver, name, x)
    np.testing.assert_allclose(out[: len(want)], want, rtol=3e-7)
    assert (out[len(want) :] == -1).all()


@pytest.mark.parametrize(("name", "lists"), [("MrgSort of two", [3, 4]), ("MrgSort of three", [4, 4, 4])])
def test_mrgsort_merges_as_many_lists_as_are_valid(driver, name, lists):
    x = np.zeros((4, 4, 2), np.float32)
    x[..., 0] = [[9, 5, 4, 1], [8, 5, 5, 0], [6, 5, 3, 2], [7, 7, 7, 7]]
    x[..., 1] = np.arange(16, dtype=np.int32).reshape(4, 4).view(np.float32)
    scores, index = pairs(run(driver, name, x.ravel()), sum(lists) + 1)
    taken = np.concatenate([4 * i + np.arange(n) for i, n in enumerate(lists)])
    order = taken[np.argsort(-x[..., 0].ravel()[taken], kind="stable")]
    assert (index[:-1] == order).all() and (scores[:-1] == x[..., 0].ravel()[order]).all() and scores[-1] == -1


def test_a_store_skips_blocks_of_ub_and_bytes_of_gm(driver):
    out = run(driver, "DataCopyPad of a store", np.arange(256))
    assert (out[:14] == [0, 1, 2, 0, 0, 16, 17, 18, 0, 0, 32, 33, 34, 0]).all()


def test_matmul_of_a_transposed_left_operand(driver):
    x = np.arange(96, dtype=np.float32)
    left, right = x[:32].reshape(8, 4).T, x[32:].reshape(8, 8)
    np.testing.assert_array_equal(
        run(driver, "Matmul of a transposed left operand", x)[:32].reshape(4, 8), left @ right
    )


def test_every_instruction_that_a_kernel_may_use_has_an_example():
    examples = (ROOT / "tests" / "kernels" / "model_examples.h").read_text()
    assert {name for name in VECTOR_API if f"{name}(" not in examples} == set()


def test_select_takes_the_scalar_where_the_bit_is_clear(driver):
    out = run(driver, "CompareScalar and Select", np.arange(256) % 7)
    x = np.arange(64) % 7
    assert (out[:64] == np.where(x >= 3, x, 0.5)).all()


def test_cast_rounds_to_nearest_even(driver):
    x = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    x[:2] = [1 + 2**-8, 1 + 3 * 2**-8]  # halfway: to even, down and up
    out = run(driver, "Cast to bf16 and back", x)
    assert (out[:64] == from_bf16(to_bf16(x[:64]))).all() and out[0] == 1.0 and out[1] == 1 + 2**-6


def test_datacopypad_strides_and_padding(driver):
    out = run(driver, "DataCopyPad", np.arange(256))
    assert (out[:16] == [9, 0, 1, 2, 9, 9, 9, 9] + [-1] * 8).all()  # one UB block is skipped
    assert (out[16:25] == [9, 5, 6, 7, 9, 9, 9, 9, -1]).all()  # 8 bytes of GM are skipped


def test_cores_add_atomically_and_meet_at_the_barrier(driver):
    assert (run(driver, "atomic add of two cores", cores=2)[:9] == [2] * 8 + [0]).all()
    assert (run(driver, "barrier between two cores", cores=2)[:17] == [1] * 8 + [2] * 8 + [0]).all()


def test_matmul_multiplies_by_the_transposed(driver):
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    np.testing.assert_array_equal(run(driver, "Matmul", x)[:64].reshape(8, 8), x @ x.T)


@pytest.mark.parametrize(
    "statement, rule",
    [
        ("LocalTensor<bfloat16_t> t; Add(t, t, t, 16);", "not supported on A2"),
        ("LocalTensor<int32_t> t; Exp(t, t, 8);", "not supported on A2"),
        ("LocalTensor<int32_t> t; WholeReduceSum(t, t, 8, 1, 1, 1, 8);", "reductions of float"),
        ("PipeBarrier<PIPE_S>();", "does not take PIPE_S"),
    ],
)
def test_types_that_the_hardware_lacks_do_not_compile(driver, statement, rule):
    driver("model")  # skips where there is no compiler
    source = f'#include "kernel_operator.h"\nusing namespace AscendC;\nvoid f() {{ {statement} }}\n'
    done = subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", f"-I{ROOT / 'kernels' / 'host_model'}", "-xc++", "-"],
        input=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and rule in done.stderr
