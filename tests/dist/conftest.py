"""A small prepared corpus, and runs of the real command line on it as a user would start them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

CONFIG = """
name: small
output_dir: {runs}
model: {{vocab_size: 384, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2,
        head_dim: 8, intermediate_size: 24, sliding_window: 8, max_position_embeddings: 256, rope_scaling: null}}
moe: {{num_experts: 8, num_experts_per_tok: 2, balance: {{aux_coef: 0.01, z_coef: 0.001, bias_rate: 0.001}}}}
train: {{steps: 12, seq_length: 32, global_batch_size: 8, micro_batch_size: 2, eval_every: 6, eval_batches: 2,
        mode: pynative}}
optim: {{lr: 0.01, warmup_steps: 2}}
data: {{sources: {data}}}
checkpoint: {{every: 3, keep_last: 3, min_free: 0}}
observe: {{tensorboard: false}}
launch: {{timeout: 4min}}
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token folder made from a few modules of the standard library."""
    from mindmoe.data.config import PrepareConfig
    from mindmoe.data.prepare import prepare

    text = tmp_path_factory.mktemp("text")
    for module in ("json", "email", "logging"):
        shutil.copytree(Path(os.__file__).parent / module, text / module, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("tokens") / "corpus"
    prepare([str(text)], out, PrepareConfig(vocab_size=384, valid_fraction=0.2, workers=1))
    return out


if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    # Runs of these tests are hung up on purpose. Under nohup they would inherit that it is ignored, and would heed that;
    # a handler that does nothing keeps the tests alive and is not inherited.
    signal.signal(signal.SIGHUP, lambda *_: None)


@dataclass
class Cli:
    """The command line of the working tree, with one config."""

    folder: Path
    corpus: Path
    config: Path = field(init=False)
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = self.folder / "small.yaml"
        self.config.write_text(CONFIG.format(runs=self.folder / "runs", data=self.corpus))

    def start(self, *words: str) -> subprocess.Popen:
        """Starts `mindmoe WORD CONFIG WORD ...` in a session of its own."""
        command = [sys.executable, "-m", "mindmoe", words[0], str(self.config), *words[1:]]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "GLOG_v": "3", **self.env},
        )

    def run(self, *words: str) -> tuple[int, str]:
        """Runs to the end; exit code and output."""
        process = self.start(*words)
        output, _ = process.communicate(timeout=580)
        return process.returncode, output

    def metrics(self, name: str) -> Path:
        """The metrics file of a run."""
        return self.folder / "runs" / name / "metrics.jsonl"

    def related(self) -> list[psutil.Process]:
        """Every living process with this folder in its command line."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(self.folder) in word for word in words):
                found.append(process)
        return found

    def kill_all(self) -> None:
        """Ends every process of it as a power cut would."""
        processes = self.related()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=20)

    def wait_for_step(self, name: str, step: int, process: subprocess.Popen) -> None:
        """Returns once the run has recorded a step."""
        from mindmoe.observe.metrics import read_metrics

        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            path = self.metrics(name)
            done = [r["step"] for r in read_metrics(path) if r["kind"] == "train"] if path.exists() else []
            if done and max(done) >= step:
                return
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        raise AssertionError(f"step {step} was not reached")


@pytest.fixture
def cli(tmp_path: Path, corpus: Path) -> Iterator[Cli]:
    """The command line in a folder of its own; fails if a process of it is left behind."""
    cli = Cli(tmp_path, corpus)
    yield cli
    left = psutil.wait_procs(cli.related(), timeout=60)[1]  # what is ending when a test ends is no orphan
    cli.kill_all()
    assert not left, f"orphans: {left}"


@pytest.fixture
def trace(cli: Cli) -> Callable[[str], list[tuple]]:
    """The computed figures of a run's steps, in order."""
    from mindmoe.observe.metrics import read_metrics

    def trace(name: str) -> list[tuple]:
        records = [record for record in read_metrics(cli.metrics(name)) if record["kind"] == "train"]
        assert [record["step"] for record in records] == list(range(1, len(records) + 1))  # never doubles back
        return [
            tuple(record[key] for key in ("loss", "grad_norm", "aux_loss", "z_loss", "lr", "load_cv", "max_vio"))
            for record in records
        ]

    return trace


@pytest.fixture
def start_ranks(tmp_path: Path) -> Callable[..., None]:
    """Runs a program of tests/dist/programs on some ranks; its words are handed on."""
    from mindmoe.host.env import worker_environment
    from mindmoe.launch.local import free_port

    def start(program: str, ranks: int, *words: str) -> None:
        script = Path(__file__).parent / "programs" / program
        command = [sys.executable, "-m", "mindspore.parallel.cluster.run", f"--worker_num={ranks}", "--join=True"]
        command += [f"--local_worker_num={ranks}", f"--master_port={free_port('127.0.0.1')}"]
        command += [f"--log_dir={tmp_path / 'logs'}", "--tail_worker_log=-1", str(script), *words]
        env = {**worker_environment(1, ranks, str(Path(sys.executable).parent)), "GLOG_v": "3"}
        done = subprocess.run(
            command, env=env, timeout=580, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        logs = [path.read_text(errors="replace")[-2000:] for path in sorted((tmp_path / "logs").glob("worker_*.log"))]
        assert done.returncode == 0, "\n".join([done.stdout[-2000:], *logs])

    return start


@pytest.fixture(scope="session")
def equiv(corpus: Path, root: Path) -> Callable[..., tuple[int, str, dict]]:
    """Runs `mindmoe equiv` on configs/equiv.yaml with a small vocabulary; exit code, output and table."""

    def run(out: Path, steps: int, layouts: list[str], *words: str) -> tuple[int, str, dict]:
        command = [sys.executable, "-m", "mindmoe", "equiv", str(root / "configs" / "equiv.yaml"), *words]
        command += [f"data.sources={corpus}", "model.vocab_size=384", "moe.dispatch.capacity_chunk=16"]
        command += [f"train.steps={steps}", "--out", str(out), "--layouts", *layouts]
        done = subprocess.run(command, capture_output=True, text=True, timeout=580)
        found = out / "equiv.json"
        return done.returncode, done.stdout + done.stderr, json.loads(found.read_text()) if found.exists() else {}

    return run
