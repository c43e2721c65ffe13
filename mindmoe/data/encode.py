"""Records to tokens in processes of their own, however many: with the same result in the same order."""

import hashlib
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindmoe.data.indexed import token_dtype
from mindmoe.data.records import BadRecord, Record, Rejected, parse
from mindmoe.data.tokenizer import TextRefused, Tokenizer, load_tokenizer
from mindmoe.host.errors import UserError

_PIECE = 1 << 20  # [characters] encoded at a time; longer documents are cut behind a line break


@dataclass(frozen=True)
class Job:
    """Some records and how to encode them.

    Attributes:
        records: in the order of the corpus; what was rejected earlier keeps its place.
        position: bytes of all inputs read up to the end of the last record, for progress.
        tokenizer: path of the tokenizer file.
        digest: of that file.
        text_key: key of the text in JSON records.
        append_eod: whether each document ends with the end-of-document token.
        seed: of the draws.
    """

    records: list[Record | Rejected]
    position: int
    tokenizer: Path
    digest: str
    text_key: str
    append_eod: bool
    seed: int


@dataclass(frozen=True)
class EncodedDocument:
    """An encoded document.

    Attributes:
        tokens: (length,) in the dtype of the set.
        num_bytes: of its text in UTF-8.
        draw: uniform in [0, 1), from the seed and the text alone; decides the split.
    """

    tokens: NDArray[np.integer]
    num_bytes: int
    draw: float


@dataclass(frozen=True)
class Encoded:
    """The outcome of a job, in its order; None stands for a record without text."""

    results: list[EncodedDocument | Rejected | None]
    position: int


@lru_cache(maxsize=1)
def _tokenizer(path: Path, digest: str) -> Tokenizer:
    """Loaded once in a process, and again when another file has taken the path."""
    tokenizer = load_tokenizer(path)
    if tokenizer.digest != digest:
        raise UserError(f"{path} was changed while it was used", "run again")
    return tokenizer


def draw_of(text: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but the text and the seed: equal documents never part."""
    digest = hashlib.blake2b(text, digest_size=8, key=str(seed).encode()).digest()
    # 53 bits: what a double holds exactly, and so a number below 1.
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def encode_job(job: Job) -> Encoded:
    """Decodes, checks and tokenises the records of a job."""
    tokenizer = _tokenizer(job.tokenizer, job.digest)
    return Encoded([_encode_record(record, job, tokenizer) for record in job.records], job.position)


def _encode_record(record: Record | Rejected, job: Job, tokenizer: Tokenizer) -> EncodedDocument | Rejected | None:
    if isinstance(record, Rejected):
        return record
    dtype = token_dtype(tokenizer.vocab_size)
    try:
        text = parse(record, job.text_key)
        if not text:
            return None
        parts = [np.array(tokenizer.encode(piece), dtype) for piece in _pieces(text)]
    except BadRecord as error:
        return Rejected(record.file, record.line, str(error))
    except TextRefused as error:
        return Rejected(record.file, record.line, error.message)
    if job.append_eod:
        parts.append(np.array([tokenizer.eod_id], dtype))
    # Drawn from the text as a whole: the pieces that it is encoded in must not matter.
    raw = text.encode("utf-8")
    return EncodedDocument(np.concatenate(parts), len(raw), draw_of(raw, job.seed))


def _pieces(text: str) -> Iterator[str]:
    """The text in parts of bounded length, cut behind a line break where there is one."""
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def encode_all(jobs: Iterator[Job], workers: int) -> Generator[Encoded, None, None]:
    """The outcome of each job, in order, with a bounded number of jobs under way.

    A process that dies takes the whole pool with it, and which job ended it is not known: all that were under way are
    done again, each by itself, and the record at fault is refused.

    Args:
        jobs: consumed as results are taken.
        workers: processes beside this one, which a fault in a tokenizer library therefore never ends.

    Raises:
        UserError: processes die before they have a record.
    """
    pool = _pool(workers)
    pending: deque[tuple[Job, Future[Encoded]]] = deque()
    more = iter(jobs)
    try:
        while True:
            # Three jobs a process keep all of them busy while results are taken in order, and bound what is in memory.
            pending.extend((job, _submit(pool, job)) for job in islice(more, 3 * workers - len(pending)))
            if not pending:
                return
            job, future = pending[0]
            try:
                outcome = future.result()
            except BrokenProcessPool:
                pool.shutdown(wait=True, cancel_futures=True)
                # In their order, the first one included: what others of the pool had finished is done again.
                again = [job for job, _ in pending]
                pending.clear()
                for job in again:
                    yield _encode_alone(job)
                pool = _pool(workers)
            else:
                pending.popleft()
                yield outcome
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the progress display runs a thread, and a fork would copy the locks it holds.
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)


def _submit(pool: ProcessPoolExecutor, job: Job) -> Future[Encoded]:
    """The future outcome of a job; of a pool that has broken already, one that says so."""
    try:
        return pool.submit(encode_job, job)
    except BrokenProcessPool as error:
        broken: Future[Encoded] = Future()
        broken.set_exception(error)
        return broken


def _encode_alone(job: Job) -> Encoded:
    """The outcome of a job in a process of its own; where that dies, of its halves, down to the record at fault."""
    try:
        with _pool(1) as pool:
            return pool.submit(encode_job, job).result()
    except BrokenProcessPool:
        pass
    if not job.records:
        raise UserError(
            "the processes that tokenise die before they have a text (the system may be out of memory)",
            "free memory, or run again with fewer workers",
        )
    if len(job.records) > 1:
        middle = len(job.records) // 2
        halves = [_encode_alone(replace(job, records=part)) for part in (job.records[:middle], job.records[middle:])]
        return Encoded([result for half in halves for result in half.results], job.position)
    # Without records: if that fails as well, not the record is at fault but the machine, and the error says so.
    _encode_alone(replace(job, records=[]))
    (record,) = job.records
    reason = "the process that tokenised it died, out of memory or of a fault in the tokenizer: leave it out"
    return Encoded([Rejected(record.file, record.line, reason)], job.position)


def _end_with_parent() -> None:
    """In a worker: leaves to the main process what Ctrl-C means, and ends when that process is gone.

    A pool does not notice the kill -9 of its owner: without this its processes would wait for jobs forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        # Readable once the parent has ended, in whatever way.
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
