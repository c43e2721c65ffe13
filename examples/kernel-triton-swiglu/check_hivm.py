"""Compiles both kernels for Ascend910B1 as far as the package index allows: Triton, linalg, HIVM.

The last step, HIVM to an object file, needs `hivmc`, which comes with CANN alone; without it the compiler ends with an
error after it has written HIVM. So what is checked is that file: the kernel is in it, lowered to vector instructions,
buffers at addresses of the unified buffer, and barriers. Exits with 1 if one of the kernels does not get there.
"""

import re
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

import ascendnpuir
from swiglu import BLOCK, swiglu_grad_kernel, swiglu_kernel
from triton._C.libtriton import ir
from triton.backends.ascend.compiler import AscendBackend, make_ttir, ttir_to_linalg
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = "Ascend910B1"
UNIFIED_BUFFER = 192 * 1024  # [bytes]
COMPILER = Path(ascendnpuir.__file__).parent / "bin" / "bishengir-compile"
NUMBERS = {"columns": "i32", "alpha": "fp32", "limit": "fp32", "BLOCK": "constexpr"}
KERNELS = {swiglu_kernel: ("h", "out"), swiglu_grad_kernel: ("dout", "h", "dh")}  # with their activations


def linalg(kernel, activations: tuple[str, ...], dtype: str) -> str:
    """A kernel in MLIR's linalg dialect; activations are of `dtype`, weights fp32.

    Raises:
        CalledProcessError: Triton-Ascend cannot lower it.
    """
    backend = AscendBackend(GPUTarget("npu", TARGET, 0))
    signature = {name: NUMBERS.get(name, f"*{dtype}" if name in activations else "*fp32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants={"BLOCK": BLOCK})
    options, context = backend.parse_options({}), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
    metadata = {"hash": kernel.__name__, "target": backend.target, **options.__dict__}
    return ttir_to_linalg(make_ttir(module, metadata, options), metadata, options, named_ops=True)


def hivm(code: str, folder: Path) -> tuple[str, str]:
    """HIVM of a kernel after its last pass, empty if there is none, and what the compiler said."""
    source, written = folder / "kernel.mlir", folder / "module.hivm.opt.mlir"
    source.write_text(code)
    options = [f"--target={TARGET}", "--enable-hfusion-compile=true", "--enable-hivm-compile=true",
               "--enable-triton-kernel-compile=true", f"--save-temps={folder}", "-o", folder / "kernel"]  # fmt: skip
    done = subprocess.run([COMPILER, source, *options], capture_output=True, text=True, check=False)
    return written.read_text() if written.is_file() else "", done.stdout + done.stderr


def faults(text: str, name: str) -> list[str]:
    """What a lowered vector kernel has and this HIVM lacks."""
    wanted = {
        "the kernel itself": rf"func\.func @{name}\(",
        "vector core": r"hivm\.module_core_type<AIV>",
        "loads into the unified buffer": r"call @load_gm_to_ubuf\w+\(",
        "stores out of it": r"call @store_ubuf_to_gm\w+\(",
        "barriers": r"hivm\.hir\.pipe_barrier",
    }
    found = [what for what, pattern in wanted.items() if not re.search(pattern, text)]
    if not 0 < occupied(text) <= UNIFIED_BUFFER:
        found.append(f"buffers within {UNIFIED_BUFFER} bytes: they end at {occupied(text)}")
    return found


def occupied(text: str) -> int:
    """Where the last buffer ends that has an address in the unified buffer [bytes]."""
    bits = {"i1": 1, "bf16": 16, "f32": 32, "i32": 32, "i64": 64, "i16": 16, "i8": 8}
    pattern = r"pointer_cast\(%c(\d+)_i64\) : memref<([\dx]+)x(\w+), (?:strided<\S+>, )?#hivm\.address_space<ub>>"
    buffers = re.findall(pattern, text)
    return max((int(at) + prod(map(int, size.split("x"))) * bits[kind] // 8 for at, size, kind in buffers), default=0)


def main() -> int:
    """Prints a line for each kernel and type; the exit status."""
    status = 0
    for kernel, activations in KERNELS.items():
        for dtype in ("fp32", "bf16"):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    text, said = hivm(linalg(kernel, activations, dtype), Path(folder))
                except subprocess.CalledProcessError as error:
                    text, said = "", f"triton-adapter-opt: status {error.returncode}\n{error.stderr.decode()}"
            missing = faults(text, kernel.__name__)
            barriers = len(re.findall(r"hivm\.hir\.pipe_barrier", text))
            print(f"{kernel.__name__} {dtype}: ", end="")
            if missing:
                print(f"HIVM lacks {', '.join(missing)}\n{said}")
                status = 1
            else:
                print(f"HIVM for {TARGET}, {occupied(text)} bytes of the unified buffer, {barriers} barriers")
    return status


if __name__ == "__main__":
    sys.exit(main())
