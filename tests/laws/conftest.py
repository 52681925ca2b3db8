"""A law over a grid is tried on a quarter of it each time, and on all of it nightly."""

import pytest

# What a grid is made of: a test with two of these holds for each pair.
WAYS = ("variant", "position", "suffix", "name", "rows", "storage")
QUARTERS = 4


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the nightly run what is not on every fourth diagonal.

    There each variant meets some of the positions, and each position some of the variants.
    """
    for item in items:
        indices = item.callspec.indices if hasattr(item, "callspec") else {}
        ways = [indices[way] for way in WAYS if way in indices]
        if item.path.parent.name == "laws" and len(ways) > 1 and sum(ways) % QUARTERS:
            item.add_marker(pytest.mark.nightly)
