"""`mindmoe data inspect`: what a token set holds, in numbers and in words."""

import os
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mindmoe.data.dataset import Split, locate
from mindmoe.data.indexed import IndexedDataset
from mindmoe.data.manifest import DatasetManifest, load_manifest
from mindmoe.data.tokenizer import Tokenizer, load_tokenizer
from mindmoe.host.errors import UserError
from mindmoe.host.files import shown

_COUNTED = 100_000_000  # tokens that vocabulary statistics are taken from at most
_CHUNK = 1 << 22
_SAMPLE_TOKENS = 96


def inspect(path: Path, samples: int) -> None:
    """Prints the statistics of a token folder or of one .bin/.idx pair, and decoded samples.

    Args:
        path: a folder written by `prepare`, or the prefix of a pair.
        samples: documents to show of each set, from its beginning to its end; decoded when the tokenizer is known.

    Raises:
        UserError: there is no such set or it is damaged.
    """
    if samples < 0:
        raise UserError(f"samples={samples} is below 0", "ask for 0 or more")
    console = Console(markup=False, emoji=False, highlight=False)
    is_folder = os.path.isdir(path)
    manifest = load_manifest(path) if is_folder else None
    splits: list[Split] = [name for name in ("train", "valid") if manifest is None or name in manifest.splits]
    for split in splits if is_folder else splits[:1]:
        prefix, manifest = locate(str(path), split)
        data = IndexedDataset(prefix)
        console.print(_statistics(prefix, data, manifest))
        if samples:
            _show_samples(console, data, _tokenizer(prefix, manifest), samples)


def _tokenizer(prefix: Path, manifest: DatasetManifest | None) -> Tokenizer | None:
    return load_tokenizer(prefix.parent / manifest.tokenizer) if manifest else None


def document_lengths(data: IndexedDataset) -> NDArray[np.int64]:
    """(documents,) tokens of each document."""
    # Where each sequence begins, and the end of the last: documents are runs of sequences.
    ends = np.append(data.offsets // data.dtype.itemsize, data.num_tokens)
    return np.diff(ends[data.document_index])


def vocabulary_use(data: IndexedDataset) -> tuple[int, int, int]:
    """Distinct tokens, the largest token, and how many tokens were looked at (the first _COUNTED at most)."""
    counts = np.zeros(0, np.int64)
    counted = min(data.num_tokens, _COUNTED)
    low = 0
    for start in range(0, counted, _CHUNK):
        chunk = data.flat[start : min(start + _CHUNK, counted)].astype(np.int64)
        low = min(low, int(chunk.min()))
        if low < 0 or int(chunk.max()) >= 1 << 31:
            raise UserError(f"{data.prefix}.bin holds numbers that are no token ids", "give a set of tokens")
        # As long as the larger of what this chunk and those before it have.
        seen = np.bincount(chunk, minlength=len(counts))
        seen[: len(counts)] += counts
        counts = seen
    return int(np.count_nonzero(counts)), len(counts) - 1, counted


def _statistics(prefix: Path, data: IndexedDataset, manifest: DatasetManifest | None) -> Table:
    table = Table(title=Text(shown(str(prefix), 300)), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")

    def add(name: str, value: str) -> None:
        table.add_row(Text(name), Text(value))

    add("documents", f"{data.num_documents:,}")
    if data.num_sequences != data.num_documents:
        add("sequences", f"{data.num_sequences:,}")
    add("tokens", f"{data.num_tokens:,}")
    add("dtype", data.dtype.name)
    if manifest is not None:
        stats = manifest.splits[prefix.name]
        add("text [bytes]", f"{stats.bytes:,}")
        add("bytes per token", f"{stats.bytes / max(stats.tokens, 1):.3f}")
    if data.num_documents:
        lengths = document_lengths(data)
        add("document length, mean", f"{lengths.mean():,.1f}")
        for percent in (0, 10, 50, 90, 99, 100):
            add(f"document length, {percent} %", f"{np.percentile(lengths, percent):,.0f}")
    if data.num_tokens and data.dtype.kind != "f":
        distinct, largest, counted = vocabulary_use(data)
        of = "" if counted == data.num_tokens else f" in the first {counted:,} tokens"
        share = f" of {manifest.vocab_size:,} ({100 * distinct / manifest.vocab_size:.1f} %)" if manifest else ""
        add("distinct tokens" + of, f"{distinct:,}{share}")
        add("largest token" + of, f"{largest:,}")
    if manifest is not None:
        add("end-of-document token", str(manifest.eod_id))
        add("tokenizer", manifest.tokenizer)
        add("tokenizer SHA-256", manifest.tokenizer_digest[:16])
        add("refused records", f"{manifest.quarantined:,}")
        add("lost parts of files", f"{manifest.lost:,}")
        add("sources", ", ".join(shown(source, 300) for source in manifest.sources))
    return table


def _show_samples(console: Console, data: IndexedDataset, tokenizer: Tokenizer | None, samples: int) -> None:
    for index in np.unique(np.linspace(0, data.num_documents - 1, min(samples, data.num_documents)).astype(int)):
        tokens = data.document(int(index))
        ids = tokens[:_SAMPLE_TOKENS].tolist()
        more = len(tokens) - len(ids)
        console.print(Text(f"document {index}, {len(tokens):,} tokens", style="bold"))
        text = harmless(tokenizer.decode(ids)) if tokenizer else " ".join(map(str, ids))
        console.print(Text(text + (f" [{more:,} tokens more]" if more > 0 else "")))
        console.print()


def harmless(text: str) -> str:
    """Text that cannot steer the terminal: control characters other than line break and tab are spelled out."""

    def spelled(character: str) -> str:
        plain = character.isprintable() or character in "\n\t" or unicodedata.category(character) == "Zs"
        return character if plain else character.encode("unicode_escape").decode()

    return "".join(map(spelled, text))
