"""The script that msrun runs in every process of a launch: the scheduler, or one rank of the training.

A rank leaves `rank_R.exit` beside its log with its exit code and, if it failed, one line that says why; the
launcher reads it, because msrun itself kills the other ranks and reports no more than that something failed.
"""

import faulthandler
import os
import sys
from pathlib import Path


def _rank() -> int:
    from mindmoe.env import place

    faulthandler.enable()
    log_folder, config = Path(sys.argv[1]), sys.argv[2]
    rank = place().rank
    status = log_folder / f"rank_{rank}.exit"
    (log_folder / f"rank_{rank}.pid").write_text(str(os.getpid()), encoding="utf-8")
    code, reason = 1, ""
    try:
        from mindmoe.errors import UserError
        from mindmoe.load import load_config
        from mindmoe.train.main import train

        try:
            code = train(load_config(config))
        except UserError as error:
            code, reason = 2, str(error)
            print(f"mindmoe: {error}", file=sys.stderr)
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            raise
    finally:
        status.write_text(f"{code}\n{reason}\n", encoding="utf-8")
    return code


def _scheduler(device: str) -> int:
    """MindSpore's rendezvous: joining the cluster in this role serves it until every rank has left."""
    from mindmoe.env import quiet_mindspore

    quiet_mindspore(threads=1)
    import mindspore as ms

    from mindmoe.parallel.groups import connect

    ms.set_device({"cpu": "CPU", "ascend": "Ascend"}[device])
    connect(device)
    return 0


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose modules are not to be found without their package
    from mindmoe.env import is_scheduler

    sys.exit(_scheduler(sys.argv[3]) if is_scheduler() else _rank())
