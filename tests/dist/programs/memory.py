"""Memory of the state of one rank under each layout: what the process grew by when the trainer was built.

memory.py OUT CONFIG WORDS ...: each WORDS a layout such as `parallel.ep=2+parallel.zero=1`.
"""

import gc
import json
import sys
from pathlib import Path

import psutil

from mindmoe.config.load import load_config
from mindmoe.config.run import resolve
from mindmoe.host.env import is_scheduler, place, quiet_mindspore
from mindmoe.parallel.groups import serve
from mindmoe.train.setup import build_trainer, start_device


def main(out: Path, config: Path, layouts: list[str]) -> None:
    """Builds one trainer after the other; none is given up, so that no memory is used twice."""
    at = place()
    quiet_mindspore(1)
    if is_scheduler():
        serve("cpu")
        return
    runs = [resolve(load_config(config, layout.split("+")), at.world) for layout in layouts]
    start_device(runs[0], at)
    kept, found = [], {}
    build = [runs[0], *runs]  # the first one also loads libraries
    for index, run in enumerate(build):
        gc.collect()
        before = psutil.Process().memory_info().rss
        kept.append(build_trainer(run, at))
        gc.collect()
        if index:
            found[layouts[index - 1]] = psutil.Process().memory_info().rss - before
    (out / f"rank-{at.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
