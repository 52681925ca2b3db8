"""What is left to the nightly run leaves out no row of any grid."""

from itertools import product

import pytest

from laws.arms import tried_each_time


@pytest.mark.parametrize("sizes", [(46, 8), (46, 2), (17, 3), (17, 4), (8, 46), (5, 3, 4), (1, 7)])
def test_every_row_of_a_grid_is_tried_each_time(sizes):
    cells = [*product(*map(range, sizes))]
    tried = [place for place in cells if tried_each_time(place, sizes)]
    for way, size in enumerate(sizes):
        assert {place[way] for place in tried} == set(range(size))
    assert len(tried) <= len(cells) / min(4, *sizes) + max(sizes)
