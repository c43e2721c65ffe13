"""TensorBoard event files of a run, under the tags that users of other trainers expect.

Events are written by this thread. tensorboardX's SummaryWriter hands them to a thread of its own through a
bounded queue instead, and once that thread has died of a full disk, training blocks on the queue for ever.
tensorboardX is imported when a log is opened, because it imports torch where torch is installed.
"""

import logging
from pathlib import Path
from time import monotonic, time
from typing import Any

_TAGS = {
    "train": {
        "loss": "loss/train",
        "aux_loss": "loss/load-balancing",
        "seq_aux_loss": "loss/load-balancing-sequences",
        "z_loss": "loss/router-z",
        "lr": "learning-rate",
        "grad_norm": "grad-norm",
        "tokens_per_s": "throughput/tokens-per-s",
        "mfu": "mfu",
        "hfu": "hfu",
        "step_seconds": "time/step-s",
        "data_seconds": "time/data-s",
        "compute_seconds": "time/compute-s",
        "update_seconds": "time/update-s",
        "load_cv": "moe/load-cv",
        "max_vio": "moe/max-vio",
        "router_entropy": "moe/router-entropy",
        "dropped_fraction": "moe/dropped-fraction",
    },
    "eval": {
        "loss": "loss/valid",
        "perplexity": "valid/perplexity",
        "bits_per_byte": "valid/bits-per-byte",
        "unigram_entropy": "loss/unigram-entropy",
        "bigram_entropy": "loss/bigram-entropy",
        "seconds": "time/eval-s",
    },
}
_LAYER_TAGS = {"cv": "moe-layer/load-cv", "max_vio": "moe-layer/max-vio"}
_FLUSH = 10.0  # [s] between two flushes; tensorboardX fsyncs in each, which may take longer than a step
_log = logging.getLogger(__name__)


class TensorBoardLog:
    """Writes records as TensorBoard events.

    Nothing here stops training: if the folder cannot be written, it warns once and drops what follows.

    Args:
        folder: where event files go; created if missing.
        resume_step: step that training resumes from; TensorBoard forgets what earlier files hold beyond it.
    """

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder = folder
        self._writer: EventsWriter | None = None
        self._flushed = monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"), f".{resume_step}")
            self._writer.write_event(Event(wall_time=time(), step=resume_step + 1, file_version="brain.Event:2"))
            purge = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time(), step=resume_step + 1, session_log=purge))
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def write(self, record: dict[str, Any]) -> None:
        """Writes what TensorBoard can show of a record; it is on disk within seconds."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = _values(record)
        if self._writer is None or not values:
            return
        event = Event(wall_time=record.get("time", time()), step=record["step"], summary=Summary(value=values))
        try:
            self._writer.write_event(event)
            if monotonic() - self._flushed >= _FLUSH:
                self._writer.flush()
                self._flushed = monotonic()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        _log.warning("no TensorBoard events from now on: cannot write %s: %s", self._folder, error.strerror)


def _values(record: dict[str, Any]) -> list[Any]:
    """The summary values of a record."""
    from tensorboardX import summary
    from tensorboardX.proto.summary_pb2 import Summary

    kind = record["kind"]
    if kind == "event":
        return list(summary.text("events", f"{record['event']}: {record['message']}").value)
    if kind == "routing":
        return [
            Summary.Value(tag=f"{tag}/{layer:03d}", simple_value=value)
            for key, tag in _LAYER_TAGS.items()
            for layer, value in enumerate(record[key])
        ]
    return [
        Summary.Value(tag=tag, simple_value=record[key])
        for key, tag in _TAGS.get(kind, {}).items()
        if record.get(key) is not None
    ]
