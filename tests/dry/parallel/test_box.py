"""Boxes against masks of all elements."""

from itertools import product

import numpy as np

from mindmoe.parallel.box import Box

SHAPE = (3, 4)
BOXES = [
    Box((a, b), (m, n)) for a, b, m, n in product(range(4), range(5), range(4), range(5)) if a + m <= 3 and b + n <= 4
]


def mask(box: Box) -> np.ndarray:
    found = np.zeros(SHAPE, bool)
    found[box.index] = True
    return found


def test_what_two_boxes_share_and_where_it_lies_in_each():
    numbers = np.arange(12).reshape(SHAPE)
    for one, two in product(BOXES, BOXES):
        both, shared = mask(one) & mask(two), one.overlap(two)
        assert (shared is None) == (not both.any())
        if shared is not None:
            assert np.array_equal(mask(shared), both)
            for box in (one, two):
                np.testing.assert_array_equal(numbers[box.index][shared.inside(box).index], numbers[shared.index])


def test_cuts_tile_a_box():
    box = Box((1, 0), (2, 4))
    assert [box.cut(1, start, 2) for start in (0, 2)] == [Box((1, 0), (2, 2)), Box((1, 2), (2, 2))]
    assert Box.whole(SHAPE).cut(0, 1, 2) == box and box.size == 8
