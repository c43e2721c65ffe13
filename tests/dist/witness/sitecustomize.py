"""Writes down what a rank holds after loading: imported by every Python process that has this folder on its path.

`WITNESS/rank-R.json` maps tensor names to [offset, shape, digest] of the box in this rank's parameter, as read back from
the parameter itself.
"""

import builtins
import json
import os
import sys
from pathlib import Path

_import = builtins.__import__


def _witnessed(restore):
    def restore_and_tell(tensors, held):
        from mindmoe.checkpoint.digest import tensor_sum

        restore(tensors, held)
        boxes = {}
        for item in held:
            values = item.param.asnumpy().reshape(item.box.shape)
            digest = tensor_sum(values, item.box.offset)
            boxes[item.spec.name] = [list(item.box.offset), list(item.box.shape), f"{digest:016x}"]
        rank = os.environ.get("RANK_ID", "0")
        (Path(os.environ["WITNESS"]) / f"rank-{rank}.json").write_text(json.dumps(boxes))

    return restore_and_tell


def _watch(name, *args, **kwargs):
    module = _import(name, *args, **kwargs)
    persist = sys.modules.get("mindmoe.train.persist")
    if persist is not None and hasattr(persist, "restore"):
        builtins.__import__ = _import
        persist.restore = _witnessed(persist.restore)
    return module


if "WITNESS" in os.environ:
    builtins.__import__ = _watch
