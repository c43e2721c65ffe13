"""The script that msrun runs in every process of a launch: the scheduler, or one rank of the training.

A rank leaves `rank_R.exit` beside its log with its exit code and, if it failed, one line that says why; the
launcher reads it, because msrun itself kills the other ranks and reports no more than that something failed. It also
records where it is, and writes its stacks into its log when the launcher asks for them.
"""

import faulthandler
import sys
from pathlib import Path


def _rank() -> int:
    from mindmoe.host.env import place
    from mindmoe.launch.ranks import STACK_SIGNAL, Rank

    faulthandler.enable()
    faulthandler.register(STACK_SIGNAL, all_threads=True)
    rank = Rank(place().rank, Path(sys.argv[1]))
    rank.begin()
    code, reason = 1, ""
    try:
        from mindmoe.config.load import load_config
        from mindmoe.host.errors import UserError
        from mindmoe.train.main import train

        try:
            code = train(load_config(sys.argv[2]))
        except UserError as error:
            code, reason = 2, str(error)
            print(f"mindmoe: {error}", file=sys.stderr)
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            raise
    finally:
        rank.leave(code, reason)
    return code


def _scheduler(device: str) -> int:
    """MindSpore's rendezvous: joining the cluster in this role serves it until every rank has left."""
    from mindmoe.host.env import quiet_mindspore
    from mindmoe.launch.ranks import leave_with_launcher

    leave_with_launcher(after_ranks=True)  # msrun, which waits for this process, then ends as well
    quiet_mindspore(threads=1)
    from mindmoe.parallel.groups import serve

    serve(device)
    return 0


if __name__ == "__main__":
    # Not the folder of this file, but that of the package, so that workers run the very code of their launcher.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from mindmoe.host.env import is_scheduler

    sys.exit(_scheduler(sys.argv[3]) if is_scheduler() else _rank())
