"""MindFormers itself as the judge: its configs, its rates and its reader of .bin/.idx.

It holds transformers 4 and cannot share an environment with ours, so MINDFORMERS_PYTHON names the interpreter of one
that has it: the extra `mindformers`. Without that variable these tests are skipped.
"""

import json
import os
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mindmoe.config.load import load_config
from mindmoe.data.indexed import IndexedDataset, IndexedWriter
from mindmoe.host.errors import UserError
from mindmoe.interop.mindformers import import_mindformers, render
from mindmoe.optim.config import OptimConfig
from mindmoe.optim.schedule import learning_rate

PYTHON = os.environ.get("MINDFORMERS_PYTHON", "")
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="MINDFORMERS_PYTHON names no interpreter with mindformers"),
    pytest.mark.timeout(700),  # [s]: MindFormers takes long to import on a busy machine
]


def theirs(folder: Path, code: str) -> object:
    """What a program prints as its last line, run where mindformers is installed."""
    done = subprocess.run(
        [PYTHON, "-c", textwrap.dedent(code)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": "", "PATH": f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_every_installed_training_config_is_imported_or_says_what_it_lacks(tmp_path):
    """Those with the whole shape of a network load as configs of ours."""
    site = Path(theirs(tmp_path, "import json, sysconfig; print(json.dumps(sysconfig.get_paths()['purelib']))"))
    files = sorted((site / "configs").glob("*/*.yaml"))
    assert len(files) > 20
    valid, refused = [], []
    for path in files:
        try:
            found = import_mindformers(path)
        except UserError as error:
            assert "run_mode=predict" in str(error) or "neither runner_config" in str(error)
            refused.append(path.name)
            continue
        assert sorted(row.key for row in found.rows) == sorted(found.leaves)
        ours = tmp_path / path.name
        ours.write_text(render(found, path.name))
        try:
            load_config(ours)
            valid.append(path.name)
        except UserError as error:
            assert "missing" in str(error), f"{path}: {error}"
    assert len(valid) >= 5 and "pretrain_qwen3_30b_a3b_4k.yaml" in valid, valid
    assert all("predict" in name or "convert" in name for name in refused)


RATES = {
    "ConstantWarmUpLR": ("", OptimConfig(lr=3e-4, warmup_steps=10, schedule="constant")),
    "LinearWithWarmUpLR": ("", OptimConfig(lr=3e-4, warmup_steps=10, schedule="linear", min_lr_ratio=0.0)),
    "CosineWithWarmUpLR": (
        "lr_end=3e-5",
        OptimConfig(lr=3e-4, warmup_steps=10, schedule="cosine", min_lr_ratio=0.1),
    ),
    "WarmUpStableDecayLR": (
        "lr_end=3e-5, decay_start_steps=60",
        OptimConfig(lr=3e-4, warmup_steps=10, schedule="wsd", min_lr_ratio=0.1, decay_fraction=0.25),
    ),
}


def test_rates_are_equal(tmp_path):
    """Their step s + 1 is our step s: theirs is 0 at its first step, ours is not. They compute in fp32."""
    total = 80
    calls = ", ".join(f"'{name}': lr.{name}(**common, {extra})" for name, (extra, _) in RATES.items())
    rates = theirs(
        tmp_path,
        f"""
        import json, mindspore as ms
        from mindformers.core import lr
        common = dict(learning_rate=3e-4, warmup_steps=10, total_steps={total})
        def rate(schedule, step):
            found = schedule(ms.Tensor(step, ms.float32))
            return float(found.asnumpy() if hasattr(found, "asnumpy") else found)
        schedules = {{{calls}}}
        print(json.dumps({{name: [rate(s, i) for i in range({total} + 1)] for name, s in schedules.items()}}))
        """,
    )
    for name, (_, config) in RATES.items():
        ours = [learning_rate(config, step, total) for step in range(total)]
        assert ours == pytest.approx(rates[name][1:], rel=2e-6, abs=1e-10), name


def test_documents_and_samples_are_equal(tmp_path):
    """Their reader sees our documents, and their samples are the tokens that our files hold at those places."""
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, 60000, size=size) for size in draw.integers(1, 300, size=40)]
    with IndexedWriter(tmp_path / "tokens", np.uint16) as writer:
        for document in documents:
            writer.add_document([document])
    said = theirs(
        tmp_path,
        """
        import json
        from mindformers.dataset.blended_datasets.utils import compile_helpers
        compile_helpers()
        from mindformers.dataset.blended_datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from mindformers.dataset.blended_datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
        config = GPTDatasetConfig(
            random_seed=1234, sequence_length=64, blend=(["tokens"], [1.0]), split="1,0,0",
            reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
            path_to_cache="cache",
        )
        data = BlendedMegatronDatasetBuilder(GPTDataset, [50, 0, 0], lambda: True, config).build()[0]
        data = getattr(data, "datasets", [data])[0]
        documents = [data.dataset[i].tolist() for i in range(len(data.dataset))]
        order = data.document_index.tolist()
        shuffle, bounds = data.shuffle_index.tolist(), data.sample_index.tolist()
        samples = []
        for i in range(20):
            item = data[i]
            values = item if isinstance(item, (tuple, list)) else [item["tokens"], item["labels"]]
            samples.append([[int(v) for v in values[0]], [int(v) for v in values[1]]])
        print(json.dumps([documents, order, shuffle, bounds, samples]))
        """,
    )
    read, order, shuffle, bounds, samples = said
    ours = IndexedDataset(tmp_path / "tokens")
    assert len(read) == len(documents)
    for index, document in enumerate(read):
        assert document == documents[index].tolist() == ours.document(index).tolist()
    for number, (tokens, labels) in enumerate(samples):
        (first, offset), (last, end) = bounds[shuffle[number]], bounds[shuffle[number] + 1]
        flat = np.concatenate([ours.document(order[at]) for at in range(first, last + 1)])
        stop = sum(len(ours.document(order[at])) for at in range(first, last)) + end + 1
        expected = flat[offset:stop].tolist()
        assert tokens == expected[:-1] and labels == expected[1:]
