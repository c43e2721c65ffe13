"""Loading is resharding: any boxes saved, any boxes read, bitwise, and no more bytes than that takes."""

import random
from itertools import product
from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mindmoe.checkpoint import disk, store
from mindmoe.checkpoint.chunks import Chunk
from mindmoe.checkpoint.digest import add, block_bytes, tensor_sum
from mindmoe.checkpoint.manifest import CorruptCheckpoint, Manifest
from mindmoe.checkpoint.reader import total_digest
from mindmoe.parallel.box import Box


def cuts(rng: random.Random, size: int, parts: int) -> list[tuple[int, int]]:
    """A dimension cut into uneven stretches, some of them possibly empty."""
    edges = sorted([0, size, *(rng.randint(0, size) for _ in range(parts - 1))])
    return [(a, b - a) for a, b in zip(edges, edges[1:], strict=False)]


def tiling(rng: random.Random, shape: tuple[int, ...]) -> list[Box]:
    """Boxes that tile a tensor."""
    stretches = [cuts(rng, size, rng.choice((1, 1, 2, 3))) for size in shape]
    return [Box(tuple(o for o, _ in box), tuple(n for _, n in box)) for box in product(*stretches)]


def publish(root: Path, saver: ModuleType, step: int, ranks: list[dict[str, Chunk]]) -> Path:
    meta = saver.meta(store.claim(root))
    staging = store.begin(root, step, meta.generation)
    records = tuple(store.write_shard(staging, rank, chunks) for rank, chunks in enumerate(ranks))
    return store.commit(root, staging, Manifest(step=step, meta=meta, shards=records))


def sharded(arrays: dict[str, np.ndarray], layout: dict[str, list[Box]]) -> list[dict[str, Chunk]]:
    """The chunks of as many ranks as the largest number of boxes of one tensor."""
    ranks: list[dict[str, Chunk]] = [{} for _ in range(max(map(len, layout.values())))]
    for name, boxes in layout.items():
        for rank, box in enumerate(boxes):
            ranks[rank][name] = Chunk(arrays[name][box.index], "", arrays[name].shape, box.offset)
    return ranks


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "<f4") -> np.ndarray:
    size = prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(rng.bytes(size), dtype).reshape(shape)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_random_layouts(ram: Path, saver: ModuleType, seed: int) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    arrays = {}
    for index in range(6):
        shape = tuple(rng.choice((1, 2, 5, 7, 16, 33)) for _ in range(rng.randint(0, 4)))
        arrays[f"t{index}"] = random_array(numbers, shape, rng.choice(("<f4", "<f2", "<i8", "|u1")))
    arrays["long"] = random_array(numbers, (rng.randint(5_000, 90_000),))
    arrays["wide"] = random_array(numbers, (3, 41, rng.randint(100, 700)))
    whole = publish(ram / "whole", saver, 1, [{name: Chunk(array) for name, array in arrays.items()}])
    path = publish(ram / "cut", saver, 1, sharded(arrays, {n: tiling(rng, a.shape) for n, a in arrays.items()}))
    with store.open_step(whole) as one, store.open_step(path) as many:
        assert one.tensors == many.tensors and total_digest(one.tensors) == total_digest(many.tensors)
        for _ in range(3):
            for index in range(max(len(tiling(rng, a.shape)) for a in arrays.values())):
                boxes = {name: rng.choice(tiling(rng, array.shape)) for name, array in arrays.items()}
                for source in (one, many):
                    for name, array in source.read(boxes).items():
                        wanted = arrays[name][boxes[name].index]
                        assert array.tobytes() == wanted.tobytes() and array.shape == wanted.shape, (index, name)
        assert not [*one.damage(), *many.damage()]


@pytest.mark.parametrize("cached", [False, True])
def test_reads_past_the_page_cache_bring_the_same_bytes(
    tmp_path: Path, saver: ModuleType, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """Odd sizes put the tensors at odd places in their pages; boxes begin and end anywhere."""
    numbers, rng = np.random.default_rng(5), random.Random(5)
    shapes = {"a": (7, 301, 503), "b": (1_000_003,), "c": (613, 1001), "d": (3, 5)}
    arrays = {name: random_array(numbers, shape, "<f2") for name, shape in shapes.items()}
    layout = {name: tiling(rng, shape) for name, shape in shapes.items()}
    came: list[int] = []
    read_pages = disk.read_pages
    monkeypatch.setattr(disk, "read_pages", lambda *args: came.append(read_pages(*args)) or came[-1])
    for root, ranks in (("whole", [{n: Chunk(a) for n, a in arrays.items()}]), ("cut", sharded(arrays, layout))):
        path = publish(tmp_path / root, saver, 1, ranks)
        with store.open_step(path) as source:
            for _ in range(6):
                boxes = {name: rng.choice(tiling(rng, shape)) for name, shape in shapes.items()}
                for name, array in source.read(boxes, cached).items():
                    assert array.tobytes() == arrays[name][boxes[name].index].tobytes(), name
            whole = source.read_all(cached)
            assert all(whole[name].tobytes() == array.tobytes() for name, array in arrays.items())
    if cached:
        assert not came
    elif direct_reads(tmp_path):
        assert sum(came) > sum(array.nbytes for array in arrays.values())


def direct_reads(folder: Path) -> bool:
    """Whether the file system has them."""
    with (folder / "probe").open("w+b") as file:
        file.write(bytes(4096))
        file.flush()
        fd = disk.reopen_direct(file.fileno())
        return fd is not None and disk.read_pages(fd, disk.aligned(4096, 0), 0) == 4096


def test_a_chain_of_rank_counts(ram: Path, saver: ModuleType) -> None:
    """1 -> 2 -> 4 -> 3 -> 1 ranks, cut along experts, then columns, then rows: the same bits and the same digest."""
    numbers = np.random.default_rng(0)
    arrays = {"experts": random_array(numbers, (10, 64, 96)), "embed": random_array(numbers, (1003, 48))}
    path = publish(ram / "0", saver, 1, [{name: Chunk(array) for name, array in arrays.items()}])
    digests = set()
    for hop, (ranks, dim) in enumerate(((2, 0), (4, -1), (3, 0), (1, 0)), 1):
        layout = {}
        for name, array in arrays.items():
            edges = [len(part) for part in np.array_split(np.arange(array.shape[dim]), ranks)]
            layout[name] = []
            for rank in range(ranks):
                offset, shape = [0] * array.ndim, list(array.shape)
                offset[dim], shape[dim] = sum(edges[:rank]), edges[rank]
                layout[name].append(Box(tuple(offset), tuple(shape)))
        with store.open_step(path) as source:
            digests.add(total_digest(source.tensors))
            parts = [source.read({name: layout[name][rank] for name in arrays}) for rank in range(ranks)]
        chunks = [
            {n: Chunk(part[n], "", arrays[n].shape, layout[n][rank].offset) for n in arrays}
            for rank, part in enumerate(parts)
        ]
        path = publish(ram / str(hop), saver, 1, chunks)
    tensors, _ = store.load(path)
    assert all(tensors[name].tobytes() == array.tobytes() for name, array in arrays.items())
    assert len(digests) == 1


@pytest.mark.parametrize(
    "shape, parts, dim",
    [
        ((32, 96, 128), 4, 0),
        ((32, 96, 128), 3, 0),
        ((4003, 288), 2, 0),
        ((32, 300, 64), 2, 1),
        ((400_000,), 4, 0),
        ((8, 2**20), 4, 1),
    ],
)
def test_only_needed_bytes_are_read(ram: Path, saver: ModuleType, shape: tuple[int, ...], parts: int, dim: int) -> None:
    array = random_array(np.random.default_rng(1), shape)
    path = publish(ram, saver, 1, [{"w": Chunk(array)}])
    start = 0
    for part in np.array_split(np.arange(shape[dim]), parts):
        offset, size = [0] * len(shape), list(shape)
        offset[dim], size[dim] = start, len(part)
        start += len(part)
        with store.open_step(path) as source:
            source.read({"w": Box((0,) * len(shape), (0,) * len(shape))})
            source.read({"w": Box((0,) * len(shape), (1,) * len(shape))})
            before = source.bytes_read  # the header has been read
            read = source.read({"w": Box(tuple(offset), tuple(size))})["w"]
            assert source.bytes_read - before <= 1.05 * read.nbytes


def test_a_cut_through_rows_reads_whole_rows(ram: Path, saver: ModuleType) -> None:
    """The price of verified blocks: half of every row costs the whole row, and no more."""
    array = random_array(np.random.default_rng(2), (256, 1024))
    path = publish(ram, saver, 1, [{"w": Chunk(array)}])
    with store.open_step(path) as source:
        half = source.read({"w": Box((0, 512), (256, 512))})["w"]
        assert np.array_equal(half.view(np.uint32), array[:, 512:].view(np.uint32))
        assert 2 * half.nbytes <= source.bytes_read <= 2 * half.nbytes + 8192


def test_a_flip_outside_of_what_is_read_is_nobodys_business(ram: Path, saver: ModuleType) -> None:
    path = publish(ram, saver, 1, [{"w": Chunk(random_array(np.random.default_rng(3), (64, 1024)))}])
    file = path / "shard-00000.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 4
    file.write_bytes(raw)
    with store.open_step(path) as source:
        source.read({"w": Box((0, 0), (32, 1024))})
        with pytest.raises(CorruptCheckpoint, match=f"tensor w does not match its digest in bytes .* to {len(raw)}"):
            source.read({"w": Box((32, 0), (32, 1024))})
        assert len(list(source.damage())) == 1


def test_the_digest_sees_what_a_sum_would_not() -> None:
    rng = np.random.default_rng(4)
    base = rng.standard_normal((6, 8)).astype(np.float32)
    seen = {tensor_sum(base, (0, 0))}
    changes = [-base, base[::-1], base[:, ::-1], np.roll(base, 1, 1), base + 0 * base, np.zeros_like(base)]
    for row, column in np.ndindex(6, 8):
        for bit in (0, 15, 31):
            flipped = base.copy()
            flipped.view(np.uint32)[row, column] ^= np.uint32(1 << bit)
            changes.append(flipped)
    for first, second in ((0, 1), (10, 40)):  # two sign flips, two values exchanged
        signs, swapped = base.copy().reshape(-1), base.copy().reshape(-1)
        signs[[first, second]] *= -1
        swapped[[first, second]] = swapped[[second, first]]
        changes += [signs.reshape(6, 8), swapped.reshape(6, 8)]
    for changed in changes:
        seen.add(tensor_sum(np.ascontiguousarray(changed), (0, 0)))
    assert len(seen) == len(changes)  # all differ but one change that changes nothing


def test_the_digest_is_the_weighted_sum_it_says() -> None:
    array = random_array(np.random.default_rng(5), (3, 4, 5))
    single = 0
    for place in np.ndindex(*array.shape):
        single = add(single, tensor_sum(np.array(array[place]).reshape(1, 1, 1), place))
    assert single == tensor_sum(array, (0, 0, 0))
    assert tensor_sum(np.float32(1.5).reshape(()), ()) == np.float32(1.5).view(np.uint32)


def test_blocks_are_whole_slices_where_they_can_be() -> None:
    assert block_bytes((128, 2880, 5760), 4) % (5760 * 4) == 0
    assert block_bytes((201_088, 2880), 4) % (2880 * 4) == 0
    for shape in ((), (0, 4), (1,), (2880,), (7, 3), (10**7,), (10**5, 1), (1, 10**6)):
        block = block_bytes(shape, 4)
        assert 1 <= block <= 2**20 and (block <= 4096 or prod(shape) * 4 / block >= 100)
