"""A law over a grid is tried on diagonals of it each time, and on all of it nightly."""

from collections import defaultdict

import pytest

from laws.arms import tried_each_time

# What a grid is made of: a test with two of these holds for each pair.
WAYS = ("variant", "position", "suffix", "name", "rows", "storage")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the nightly run what is not on the diagonals."""
    grids = defaultdict(list)
    for item in items:
        indices = item.callspec.indices if hasattr(item, "callspec") else {}
        place = tuple(indices[way] for way in WAYS if way in indices)
        if item.path.parent.name == "laws" and len(place) > 1:
            grids[item.path, item.originalname].append((item, place))
    for cells in grids.values():
        sizes = [1 + max(ends) for ends in zip(*(place for _, place in cells), strict=True)]
        for item, place in cells:
            if not tried_each_time(place, sizes):
                item.add_marker(pytest.mark.nightly)
