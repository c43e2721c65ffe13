"""The script that runs in every process of a comparison: one rank, under one layout after the other."""

import faulthandler
import sys
from pathlib import Path


def main(logs: Path, jobs_file: Path, device: str) -> int:
    """Runs every job of the file; a job is a config, an output folder, and the folder of the process alone, if any."""
    from mindmoe.host.env import is_scheduler, place, quiet_mindspore, threads_per_rank
    from mindmoe.launch.ranks import STACK_SIGNAL, Rank, leave_with_launcher

    at = place()
    leave_with_launcher(after_ranks=False)
    quiet_mindspore(threads_per_rank(0, at.local_world))
    if is_scheduler():
        from mindmoe.parallel.groups import serve

        serve(device)
        return 0
    faulthandler.enable()
    faulthandler.register(STACK_SIGNAL, all_threads=True)
    rank = Rank(at.rank, logs)
    rank.begin()
    code, reason = 1, ""
    try:
        from mindmoe.config.load import load_config
        from mindmoe.equiv.compare import TIE
        from mindmoe.host import strict_json
        from mindmoe.train.preflight import open_batches
        from mindmoe.train.setup import start_device
        from mindmoe.train.trace import trace

        jobs = strict_json.checked(list[dict[str, str]], strict_json.read(jobs_file), str(jobs_file))
        start_device(load_config(jobs[0]["config"]), at)
        for job in jobs:
            config = load_config(job["config"])
            alone = Path(job["alone"]) if "alone" in job else None
            trace(config, at, open_batches(config, "train"), Path(job["out"]), alone=alone, rounding=TIE)
            print(f"done: {job['out']}", flush=True)
        code = 0
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        rank.leave(code, reason)
    return code


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the package, not this folder
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
