"""`mindmoe data prepare`: raw text to a folder of tokens, by as many processes as wanted, always the same bytes.

Everything is written into `<out>/.partial` and gets its name at the end, dataset.json last. So a folder with
dataset.json is whole, one with `.partial` is half-finished and is done again, and nothing else is ever touched.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from mindmoe.data.bpe import train_sentencepiece, training_sample
from mindmoe.data.config import PrepareConfig
from mindmoe.data.encode import Encoded, Job, encode_all
from mindmoe.data.files import file_digest, fsync_folder, write_bytes
from mindmoe.data.indexed import IndexedDataset, token_dtype
from mindmoe.data.manifest import FILE_NAME, STAGING, DatasetManifest, load_manifest
from mindmoe.data.progress import ByteProgress, human_bytes, human_seconds
from mindmoe.data.records import Input, Record, Rejected
from mindmoe.data.sources import discover
from mindmoe.data.split import SplitWriter
from mindmoe.data.tokenizer import FILE_NAMES, MAX_FILE, Tokenizer, kind_of, load_tokenizer, tokenizer_file
from mindmoe.data.tokenizers_file import MAX_SETTINGS
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileMissing, read_bytes, shown

QUARANTINE = "quarantine.jsonl"
_OUTPUTS = ("train.bin", "train.idx", "valid.bin", "valid.idx", *FILE_NAMES, "tokenizer_config.json")
_JOB_BYTES = 1 << 20
_JOB_RECORDS = 512
_LOST_SHOWN = 20


def prepare(sources: list[str], out: Path, config: PrepareConfig) -> None:
    """Writes the token folder `out` from the sources; does nothing if that is already done.

    The folder holds train.bin/.idx, valid.bin/.idx, the tokenizer, dataset.json, and quarantine.jsonl if records
    were refused. Its bytes depend on the inputs and the settings only, not on the number of processes.

    Args:
        sources: paths of files and folders, or `python-stdlib`.
        out: the folder to write.
        config: the settings.

    Raises:
        UserError: a source is missing or empty, too many records are bad, the folder holds something else or
            cannot be written, the vocabulary does not fit the text.
    """
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    start = time.monotonic()
    try:
        console.print("finding input")
        inputs, rejected = _find_inputs(sources, out, config, console)
        settings = _settings(config)
        digest = _inputs_digest(inputs)
        out.mkdir(parents=True, exist_ok=True)
        with _lock(out):
            if _is_done(out, settings, digest):
                console.print(f"{out} is already prepared from this input with these settings: nothing to do")
                return
            staging = _fresh_staging(out, console)
            try:
                preparation = _Preparation(sources, inputs, rejected, staging, config, console)
                manifest = preparation.run(settings, digest)
                _commit(staging, out, manifest)
            finally:
                _drop(staging, out)
    except OSError as error:
        raise UserError(
            f"cannot read or write {shown(str(error.filename or out), 300)}: {error.strerror or error}",
            "free space there, fix its permissions, or name another path",
        ) from error
    _summarise(console, out, manifest, preparation.lost, time.monotonic() - start)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps a second `prepare` out of the folder; the system releases the lock however this process ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is preparing {folder}", "wait for it or choose another folder") from None
        yield
    finally:
        os.close(descriptor)


def _find_inputs(
    sources: Sequence[str], out: Path, config: PrepareConfig, console: Console
) -> tuple[list[Input], list[Rejected]]:
    """The inputs of all sources, and what was refused while listing them."""
    inputs: list[Input] = []
    rejected: list[Rejected] = []
    for source in sources:
        found = discover(source, config.format, config.text_key, exclude=out)
        skipped = ", ".join(f"{count} {shown(suffix)}" for suffix, count in found.skipped.most_common(6))
        if not found.inputs and not found.rejected:
            other = f"; left out by suffix: {skipped}" if skipped else ""
            raise UserError(
                f"source {shown(source, 300)} holds no text{other}", "name the files, or set format=txt to read all"
            )
        size = human_bytes(sum(item.size for item in found.inputs))
        left_out = f" (left out by suffix: {skipped})" if skipped else ""
        console.print(f"  {shown(source, 300)}: {len(found.inputs):,} files, {size}{left_out}")
        inputs += found.inputs
        rejected += found.rejected
    return inputs, rejected


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """The settings that the output depends on, with a given tokenizer named by its content."""
    # How many processes and how many bad records are allowed does not change the bytes of the result.
    settings = config.model_dump(exclude={"workers", "max_bad"})
    if config.tokenizer != "train":
        settings["tokenizer"] = f"sha256:{file_digest(tokenizer_file(config.tokenizer))}"
        # They are for training a tokenizer, and mean nothing beside a given one.
        del settings["vocab_size"], settings["tokenizer_bytes"]
    return settings


def _inputs_digest(inputs: Sequence[Input]) -> str:
    """Changes when an input appears, disappears, moves in the order, or may have changed."""
    listing = json.dumps([(item.name, item.size, item.stamp) for item in inputs])
    return hashlib.sha256(listing.encode()).hexdigest()


def _is_done(out: Path, settings: dict[str, Any], inputs: str) -> bool:
    """Whether `out` holds the finished result of the same work.

    Raises:
        UserError: it holds that of other work, or it is damaged.
    """
    manifest = load_manifest(out)
    if manifest is None:
        return False
    differences = [
        f"{shown(key)} is {shown(str(manifest.settings.get(key)), 200)} there and {settings.get(key)} here"
        for key in sorted(manifest.settings.keys() | settings.keys())
        if manifest.settings.get(key) != settings.get(key)
    ]
    if manifest.inputs != inputs:
        differences.append("the input files are others or have changed")
    remedy = f"choose another folder, or delete {out} to prepare it anew"
    if differences:
        raise UserError(f"{out} was prepared differently ({'; '.join(differences)})", remedy)
    for split in manifest.splits:
        IndexedDataset(out / split)
    file = out / manifest.tokenizer
    if not os.path.isfile(file) or file_digest(file) != manifest.tokenizer_digest:
        raise UserError(f"{file} is missing or not the file that {out} was prepared with", remedy)
    return True


def _fresh_staging(out: Path, console: Console) -> Path:
    """An empty folder to write in; the rest of a half-finished attempt is removed.

    Raises:
        UserError: `out` holds files of ours that no attempt of ours left.
    """
    staging = out / STAGING
    standing = [name for name in _OUTPUTS if (out / name).exists()]
    if staging.exists():
        console.print(f"{out} was left half-finished: starting again")
        shutil.rmtree(staging)
        # The staging folder proves that these names are ours: they were given in a commit that did not end.
        for name in standing:
            (out / name).unlink()
    elif standing:
        raise UserError(f"{out} holds {', '.join(standing)} but no {FILE_NAME}", "choose another folder")
    staging.mkdir()
    fsync_folder(out)
    return staging


class _Preparation:
    """One run of the job in a staging folder.

    Attributes:
        lost: the parts of files that were lost, each with where and why.
    """

    def __init__(
        self,
        sources: list[str],
        inputs: list[Input],
        rejected: list[Rejected],
        staging: Path,
        config: PrepareConfig,
        console: Console,
    ):
        self._sources, self._inputs, self._rejected = sources, inputs, rejected
        self._staging, self._config, self._console = staging, config, console
        self._first_refused = ""
        self.lost: list[str] = []

    def run(self, settings: dict[str, Any], digest: str) -> DatasetManifest:
        """Tokenizer, then tokens; returns the manifest of what was written."""
        # Everything goes through the file in the staging folder, never through what it was copied from.
        file = self._make_tokenizer()
        tokenizer = load_tokenizer(file)
        self._check(tokenizer)
        dtype = token_dtype(tokenizer.vocab_size)
        writer = SplitWriter(self._staging, dtype, self._config.valid_fraction)
        try:
            counts = self._tokenise(tokenizer, file, writer)
            if not writer.num_documents:
                raise UserError(
                    f"no documents: {counts['bad']} records could not be read and {counts['empty']} were empty"
                    + (f"; the first: {self._first_refused}" if self._first_refused else ""),
                    "check the sources" + (f" and {QUARANTINE}" if self._first_refused else ""),
                )
            splits = writer.commit()
        finally:
            writer.abort()
        return DatasetManifest(
            vocab_size=tokenizer.vocab_size,
            eod_id=tokenizer.eod_id,
            dtype=dtype.name,
            tokenizer=file.name,
            tokenizer_digest=tokenizer.digest,
            splits=splits,
            quarantined=counts["bad"],
            lost=counts["lost"],
            empty=counts["empty"],
            sources=self._sources,
            settings=settings,
            inputs=digest,
        )

    def _make_tokenizer(self) -> Path:
        """Trains the tokenizer or copies the given one, into the staging folder."""
        config = self._config
        if config.tokenizer == "train":
            total = sum(item.size for item in self._inputs)
            sample = human_bytes(min(total, config.tokenizer_bytes))
            self._console.print(f"training a SentencePiece tokenizer of {config.vocab_size} pieces on {sample} of text")
            refused: list[str] = []
            texts = training_sample(self._inputs, config.text_key, config.seed, config.tokenizer_bytes, refused)
            # Looked for before the trainer starts, to tell why there is no text; what is found is put back in front.
            first = next(filter(None, texts), None)
            if first is None and refused:
                raise UserError(
                    f"there is no text to train a tokenizer on; the first record that was refused: {refused[0]}",
                    "repair the input",
                )
            file = self._staging / "tokenizer.model"
            write_bytes(file, train_sentencepiece(chain([first or ""], texts), config.vocab_size))
            return file
        given = tokenizer_file(config.tokenizer)
        self._console.print(f"using the tokenizer {shown(str(given), 300)}")
        content = read_bytes(given, MAX_FILE)
        # By content: the name of the given file may be that of another kind.
        file = self._staging / kind_of(content)
        write_bytes(file, content)
        if file.name == "tokenizer.json":
            settings = given.with_name("tokenizer_config.json")  # names the end-of-document token
            with suppress(FileMissing):
                write_bytes(self._staging / settings.name, read_bytes(settings, MAX_SETTINGS))
        return file

    def _check(self, tokenizer: Tokenizer) -> None:
        config = self._config
        if config.append_eod and tokenizer.eod_id < 0:
            raise UserError(
                f"the tokenizer {config.tokenizer} has no end-of-document token", "set append_eod=false or use another"
            )
        if "vocab_size" in config.model_fields_set and tokenizer.vocab_size != config.vocab_size:
            raise UserError(
                f"vocab_size={config.vocab_size}, but the tokenizer {config.tokenizer} has {tokenizer.vocab_size} ids",
                "leave vocab_size out: it is for training a tokenizer",
            )

    def _tokenise(self, tokenizer: Tokenizer, file: Path, writer: SplitWriter) -> Counter[str]:
        """Encodes every record into the writer; returns the counts of `bad`, `lost` and `empty` ones."""
        workers = self._config.workers or len(os.sched_getaffinity(0))
        self._console.print(f"tokenising with {workers} process{'es' if workers > 1 else ''}")
        counts: Counter[str] = Counter()
        total = sum(item.size for item in self._inputs)
        outcomes = encode_all(self._jobs(tokenizer, file), workers)
        with (
            closing(outcomes),
            ByteProgress(self._console, "tokenising", total) as progress,
            open(self._staging / QUARANTINE, "w", encoding="utf-8") as quarantine,
        ):
            for outcome in outcomes:
                self._take(outcome, writer, counts, quarantine)
                progress.update(outcome.position, f"{writer.num_documents:,} documents, {writer.num_tokens:,} tokens")
                # A chain of comparisons: there is a limit, and it is reached.
                if writer.num_documents == self._config.max_documents != 0:
                    break
        return counts

    def _take(self, outcome: Encoded, writer: SplitWriter, counts: Counter[str], quarantine: Any) -> None:
        """Files the results of one job; beyond `max_bad` refused records the job ends."""
        for result in outcome.results:
            if writer.num_documents == self._config.max_documents != 0:
                return
            if result is None:
                counts["empty"] += 1
            elif isinstance(result, Rejected):
                counts["lost" if result.rest else "bad"] += 1
                json.dump(asdict(result), quarantine)
                quarantine.write("\n")
                self._first_refused = self._first_refused or str(result)
                if result.rest:
                    self.lost.append(str(result))
                if counts["bad"] > self._config.max_bad:
                    count = f"{counts['bad']} records could not be read, more than max_bad={self._config.max_bad}"
                    raise UserError(
                        f"{count}; the last: {result}",
                        f"see {QUARANTINE} in the output folder; repair the input, or raise max_bad",
                    )
            else:
                writer.add(result)

    def _jobs(self, tokenizer: Tokenizer, file: Path) -> Iterator[Job]:
        """The records of all inputs in batches, cut by size alone so that every run cuts alike."""
        config = self._config

        def job(records: list[Record | Rejected], position: int) -> Job:
            return Job(records, position, file, tokenizer.digest, config.text_key, config.append_eod, config.seed)

        batch: list[Record | Rejected] = list(self._rejected)
        size = before = 0
        for item in self._inputs:
            for record in item.read():
                batch.append(record)
                size += len(record.payload) if isinstance(record, Record) else 0
                # Never by time or by the number of processes.
                if size >= _JOB_BYTES or len(batch) >= _JOB_RECORDS:
                    position = record.position if isinstance(record, Record) else 0
                    yield job(batch, before + position)
                    batch, size = [], 0
            before += item.size
        if batch:
            yield job(batch, before)


def _commit(staging: Path, out: Path, manifest: DatasetManifest) -> None:
    """Gives every file its name, dataset.json last."""
    # Their content is durable already; the names become so below, before the manifest says that all are there.
    for path in sorted(staging.iterdir()):
        if path.name != QUARANTINE:
            os.replace(path, out / path.name)
    fsync_folder(out)
    manifest.save(out)


def _drop(staging: Path, out: Path) -> None:
    """Removes the staging folder, after success or failure; the list of refused records stays."""
    quarantine = staging / QUARANTINE
    (out / QUARANTINE).unlink(missing_ok=True)
    if quarantine.exists() and quarantine.stat().st_size:
        os.replace(quarantine, out / QUARANTINE)
    # After a commit that broke off, the folder stays: it tells the next attempt that the files beside it are ours.
    if (out / FILE_NAME).exists() or not any((out / name).exists() for name in _OUTPUTS):
        shutil.rmtree(staging)
        fsync_folder(out)


def _summarise(console: Console, out: Path, manifest: DatasetManifest, lost: list[str], seconds: float) -> None:
    for name, split in manifest.splits.items():
        ratio = split.bytes / max(split.tokens, 1)
        console.print(f"  {name}: {split.documents:,} documents, {split.tokens:,} tokens, {ratio:.2f} bytes/token")
    if manifest.quarantined:
        console.print(f"  {manifest.quarantined} records could not be read: see {out / QUARANTINE}")
    if lost:
        console.print(f"  PARTS OF FILES ARE LOST, {len(lost)} of them: see {out / QUARANTINE}")
        for line in lost[:_LOST_SHOWN]:
            console.print(f"    {line}")
    console.print(f"prepared {out} in {human_seconds(seconds)}")
