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
OTHER_CODE = ("static-softmax", "pack-static-bf16")  # they run once more with oneDNN's code for lesser processors
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, traces.Trace]:
    """What every run of RUNS and CHANGED that this machine can run computes here."""
    jobs = [{"name": name, "run": name} for name in runs.RUNS]
    jobs += [{"name": name, "run": name.partition("+")[0], **changed} for name, changed in CHANGED.items()]
    jobs = [job for job in jobs if runs.runnable(job["run"])]
    started = []
    for cards, mine, variables in (
        (2, [job for job in jobs if runs.RUNS[job["run"]][0] == 2], {}),
        (1, [job for job in jobs if runs.RUNS[job["run"]][0] == 1], {}),
        (1, [{"name": f"{name}+avx2", "run": name} for name in OTHER_CODE if runs.runnable(name)], AVX2),
    ):
        folder = tmp_path_factory.mktemp("golden")
        started.append((cards, mine, folder, runs.start(mine, cards, folder, **variables)))
    found = {}
    try:
        for cards, mine, folder, process in started:
            runs.finish(process, folder)
            found |= {job["name"]: traces.assemble(folder, job["name"], cards) for job in mine}
    finally:
        for *_, process in started:
            runs.end(process)
    return found
