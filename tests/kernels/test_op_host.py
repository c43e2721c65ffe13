"""Registration of the ops against a stand-in for CANN's interface: shapes, types, and the plan of the shared tiling."""

import shutil
import subprocess

import numpy as np
import pytest
from host_model import ROOT, KernelError

T, K, E, D = 500, 4, 128, 64
Q, KV, ROWS = (2, 8, 300, 64), (2, 2, 300, 64), (2, 8, 300)

# op, input shapes (None: not given), attributes, output shapes, group and kernel, ints and reals of its plan,
# vector cores per block
OPS = [
    ("MoeGating", [(T, E), (E,)], [K, 0, 1, 1, 1, 1.0], [(T, K), (T, K)], "gating", [T, E, K, 0, 1, 1, 1], [1.0], 1),
    ("MoeGatingGrad", [(T, E), (T, K), (T, K)], [0, 1, 1.0], [(T, E)], "gating", [T, E, K, 0, 1, 1, 1], [1.0], 1),
    ("MoeCapacity", [(T, K), (T, K)], [E, 9], [(T, K)], "permute", [T, K, E, 1, 9], [], 1),
    ("MoePermute", [(T, D), (T, K)], [E, 0], [(T * K, D), (T, K), (E,)], "permute", [T, K, E, D, 0], [], 1),
    ("MoePermute", [(T, D), (T, K)], [E, 20], [(E * 20, D), (T, K), (E,)], "permute", [T, K, E, D, 20], [], 1),
    ("MoeCombine", [(T * K, D), (T, K), None], [], [(T, D)], "permute", [T, K, E, D, 0], [], 1),
    (
        "MoeCombineGrad",
        [(T, D), (E * 20, D), (T, K), (T, K), (E,)],
        [20],
        [(E * 20, D), (T, K)],
        "permute",
        [T, K, E, D, 20],
        [],
        1,
    ),
    ("Swiglu", [(7, 90)], [1.702, 7.0], [(7, 45)], "swiglu", [315], [1.702, 7.0], 1),
    ("SwigluGrad", [(7, 45), (7, 90)], [1.702, 7.0], [(7, 90)], "swiglu", [315], [1.702, 7.0], 1),
    (
        "Attention",
        [Q, KV, KV, None, (2, 300)],
        [128, 0.125],
        [Q, ROWS],
        "attention",
        [2, 8, 2, 300, 64, 128],
        [0.125],
        2,
    ),
    ("AttentionDelta", [Q, Q, ROWS, (8,)], [], [ROWS, (8,)], "attention", [2, 8, 8, 300, 64, 0], [1.0], 1),
    ("AttentionDelta", [Q, Q, ROWS, None], [], [ROWS, (0,)], "attention", [2, 8, 8, 300, 64, 0], [1.0], 1),
    (
        "AttentionGradQuery",
        [Q, KV, KV, Q, ROWS, ROWS, None],
        [0, 0.125],
        [Q],
        "attention",
        [2, 8, 2, 300, 64, 0],
        [0.125],
        2,
    ),
    (
        "AttentionGradKeyValue",
        [Q, KV, KV, Q, ROWS, ROWS, (2, 300)],
        [0, 0.125],
        [KV, KV],
        "attention",
        [2, 8, 2, 300, 64, 0],
        [0.125],
        2,
    ),
]


def ask(driver, op, shapes, attributes, bf16):
    """Blocks, workspace and output shapes as op_host gives them."""
    ints = [int(bf16)]
    for shape in shapes:
        ints += [-1] if shape is None else [len(shape), *shape]
    with pytest.raises(KernelError) as answer:
        driver("op_host")("ask", [np.frombuffer(op.encode(), np.uint8)], [], ints, attributes)
    first, *outputs = str(answer.value).split(";")
    return first, [tuple(int(d) for d in output.split()) for output in outputs]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("case", OPS, ids=lambda case: case[0])
def test_an_op_infers_its_outputs_and_starts_the_tested_plan(driver, case, bf16):
    op, shapes, attributes, outputs, group, ints, reals, per_block = case
    first, got = ask(driver, op, shapes, attributes, bf16)
    kernel = "".join("_" + c.lower() if c.isupper() else c for c in op)[1:]
    figures = np.zeros(3, np.uint64)
    driver(group)(f"plan {kernel}", [None] * 8, [figures], ints, reals, bf16=bf16, cores=48)
    assert first == f"{int(figures[0]) // per_block} {int(figures[2])}"
    assert got == outputs


def test_the_sink_epilogue(driver):
    eight = (*ROWS, 8)
    first, got = ask(driver, "AttentionSink", [Q, eight, eight, (8,)], [], True)
    assert first == "48 0" and got == [Q, eight, eight, ROWS]


def test_a_broken_rule_refuses_the_launch(driver):
    assert ask(driver, "MoeGating", [(T, 300), None], [K, 0, 1, 1, 1, 1.0], False) == ("refused", [])


CANN = {"8.1": [], "9.x": ["-DHOST_MODEL_CANN_9"]}  # where TCubeTiling is declared; both have the global name


def complaints(kernels, cann, standard="c++11"):
    """What the compiler says of op_host in a folder like kernels/, against the stand-in for a release; nothing is good.

    CANN compiles op_host as C++11: the templates of 8.1 and the classic ones of 9.x say so.
    """
    includes = [kernels, ROOT / "kernels" / "host_model", kernels / "op_kernel"]
    includes += [ROOT / "tests" / "kernels", ROOT / "tests" / "kernels" / "cann"]
    command = ["g++", f"-std={standard}", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-pedantic-errors"]
    command += [*CANN[cann], *(f"-I{folder}" for folder in includes), *sorted((kernels / "op_host").glob("*.cpp"))]
    return subprocess.run(command, capture_output=True, text=True).stderr


@pytest.mark.parametrize("standard", ["c++11", "c++17"])
@pytest.mark.parametrize("cann", CANN)
def test_op_host_compiles_as_cann_compiles_it(cann, standard):
    assert complaints(ROOT / "kernels", cann, standard) == ""


@pytest.mark.parametrize(
    ("file", "ours", "other", "said", "broken"),
    [
        ("op_kernel/attention_tiling.h", "::TCubeTiling", "AscendC::tiling::TCubeTiling", "AscendC", ["8.1"]),
        ("tiling/attention.h", "::TCubeTiling", "AscendC::tiling::TCubeTiling", "AscendC", ["8.1"]),
        ("op_host/attention.cpp", "::TCubeTiling", "AscendC::tiling::TCubeTiling", "AscendC", ["8.1"]),
        ("op_host/attention.cpp", "::TCubeTiling", "TCubeTiling", "optiling::TCubeTiling", ["8.1", "9.x"]),
        ("tiling/attention.h", "[](::TCubeTiling &cube", "[](auto &cube", "c++14", ["8.1", "9.x"]),
    ],
)
def test_what_one_release_lacks_is_noticed(tmp_path, file, ours, other, said, broken):
    for folder in ("op_host", "op_kernel", "tiling"):
        shutil.copytree(ROOT / "kernels" / folder, tmp_path / folder)
    text = (tmp_path / file).read_text()
    assert ours in text
    (tmp_path / file).write_text(text.replace(ours, other))
    for cann in CANN:
        assert (said in complaints(tmp_path, cann)) == (cann in broken)
