"""All golden runs, trained once a session: those of one process, and beside them those of two ranks."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import runs  # noqa: E402
import traces  # noqa: E402

# name -> what differs from the run of the same name up to the first "+"
CHANGED = {
    "dense+again": {},
    "dense+ulp": {"ulp": "model.layers.1.self_attn.k_proj.weight"},
    "static-sigmoid+ulp": {"ulp": "model.layers.0.mlp.router.weight"},
    "pack-static-bf16+ulp": {"ulp": "model.layers.1.input_layernorm.weight"},
    "dense+rate": {"words": ["optim.lr=0.0051"]},
    "static-softmax+aux": {"words": ["moe.balance.aux_coef=0.011"]},
    "pack-static-bf16+rate": {"words": ["optim.lr=0.0055"]},
}


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, traces.Trace]:
    """What every run of RUNS and CHANGED computes here."""
    jobs = [{"name": name, "run": name} for name in runs.RUNS]
    jobs += [{"name": name, "run": name.partition("+")[0], **changed} for name, changed in CHANGED.items()]
    started = []
    for cards in (2, 1):
        mine = [job for job in jobs if runs.RUNS[job["run"]][0] == cards]
        folder = tmp_path_factory.mktemp("golden")
        started.append((cards, mine, folder, runs.start(mine, cards, folder)))
    found = {}
    try:
        for cards, mine, folder, process in started:
            runs.finish(process, folder)
            found |= {job["name"]: traces.assemble(folder, job["name"], cards) for job in mine}
    finally:
        for *_, process in started:
            process.kill()
    return found
