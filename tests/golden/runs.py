"""The runs whose traces are kept, their tokens, and the processes that they run in (dry)."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from mindmoe.data.indexed import IndexedWriter
from mindmoe.host.errors import UserError
from mindmoe.ops.cpu.build import find_compiler

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BF16 = ("train.kernels=cpu", "train.precision=bf16")

# name -> processes, and the settings that differ from base.yaml
RUNS: dict[str, tuple[int, tuple[str, ...]]] = {
    "dense": (1, ("moe=null",)),
    "dense-graph": (1, ("moe=null", "train.mode=graph")),
    "static-softmax": (1, ("data.document_attention=true",)),
    "static-sigmoid": (
        1,
        (
            "moe.router={score: sigmoid, num_groups: 4, topk_groups: 2}",
            "moe.num_shared_experts=1",
            "moe.balance={bias_rate: 0.01}",
        ),
    ),
    "moge": (1, ("moe.router={type: moge, score: softmax, num_groups: 2}",)),
    "top-p": (1, ("moe.router={type: top_p, score: softmax, p: 0.4, k_max: 4}",)),
    "expert-choice": (
        1,
        (
            "moe.router={type: expert_choice, score: softmax, norm_topk: false, k_max: 4}",
            "moe.balance={z_coef: 0.001}",
        ),
    ),
    "dmr": (
        1,
        (
            "moe.router={type: dmr, budget: {k_max: 4, warmup_steps: 5}, features: {grad_ema: true}}",
            "moe.balance={bias_rate: 0.001}",
        ),
    ),
    "capacity": (1, ("moe.dispatch={kind: capacity, capacity_factor: 1.0, capacity_chunk: 16}",)),
    "pack-dense-fp32": (1, ("moe=null", "train.kernels=cpu")),
    "pack-static-bf16": (1, BF16),
    "pack-dmr-bf16": (
        1,
        (
            *BF16,
            "moe.router={type: dmr, budget: {k_max: 4, warmup_steps: 5}}",
            "moe.balance={bias_rate: 0.001}",
        ),
    ),
    # Half of the batch: every collective of theirs goes through sockets.
    "dp2-ep2": (2, ("train.global_batch_size=2", "train.micro_batch_size=1", "parallel.ep=2", "parallel.zero=1")),
    "tp2": (2, ("train.global_batch_size=2", "parallel.tp=2", "data.document_attention=true")),
    "pp2": (2, (*BF16, "train.global_batch_size=2", "train.micro_batch_size=1", "parallel.pp=2")),
    "cp2": (2, ("train.global_batch_size=2", "parallel.cp=2")),
}


def write_tokens(prefix: Path, count: int, vocab: int) -> None:
    """Writes documents of up to 40 tokens in which each token mostly follows from the one before it.

    All randomness is words of a Philox stream, which NumPy guarantees, so the tokens are the same everywhere.
    """
    words = np.random.Philox(key=len(prefix.name)).random_raw(3 * count).reshape(3, count)
    surprise, drawn, ends = words[0] % 10 < 2, words[1] % vocab, words[2] % 20 == 0
    with IndexedWriter(prefix, np.uint16) as writer:
        document: list[int] = []
        for at in range(count):
            follows = (5 * document[-1] + 3) % vocab if document else 0
            document.append(int(drawn[at]) if surprise[at] else follows)
            if ends[at] or len(document) == 40 or at == count - 1:
                writer.add_document([np.array(document)])
                document = []


def start(jobs: Iterable[dict], cards: int, folder: Path, **variables: str) -> subprocess.Popen:
    """Starts the processes that run jobs one after the other; they leave their traces in `folder`.

    Args:
        jobs: see program.py; `words` is filled in here.
        cards: processes, under msrun where there are several.
        folder: an empty one.
        variables: of the environment, besides those that all runs have.
    """
    data = [f"data.{key}={folder / name}" for key, name in (("sources", "train"), ("valid", "valid"))]
    for name, count in (("train", 6000), ("valid", 600)):
        write_tokens(folder / name, count, 96)
    listed = [{**job, "words": [*RUNS[job["run"]][1], *job.get("words", ()), *data]} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(listed))
    command = [sys.executable]
    if cards > 1:
        command += ["-m", "mindspore.parallel.cluster.run", f"--worker_num={cards}", f"--local_worker_num={cards}"]
        command += [f"--master_port={_free_port()}", f"--log_dir={folder / 'logs'}", "--join=True"]
        command += ["--tail_worker_log=-1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3", "OMP_NUM_THREADS": "1"}
    env |= {"MINDMOE_LOCAL_WORLD": str(cards), "PATH": os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])}
    env.pop("ONEDNN_MAX_CPU_ISA", None)
    env |= variables
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [*command, str(HERE / "program.py"), str(folder)],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen, folder: Path) -> None:
    """Waits for the processes of `start`, and shows what they said if they failed."""
    code = process.wait()
    if code:
        said = [folder / "output.txt", *sorted((folder / "logs").glob("worker_*.log"))]
        raise RuntimeError("\n".join(path.read_text(errors="replace")[-3000:] for path in said if path.exists()))


def end(process: subprocess.Popen) -> None:
    """Ends what is left of the processes of `start`."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def runnable(name: str) -> bool:
    """Whether this machine has what a run needs: the C++ pack is compiled at its first use."""
    try:
        return not any("kernels=cpu" in word for word in RUNS[name][1]) or bool(find_compiler())
    except UserError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
