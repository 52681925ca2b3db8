"""The restricted unpickler gives arrays of numbers and carries out nothing."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from qkvbench.data.array_pickle import ForbiddenPickleError, arrays


class _Command:
    """What an attacker pickles: a call that happens when it is loaded."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize("protocol", [3, 4])
def test_tuples_of_numeric_arrays_come_back_as_they_were(protocol):
    pair = (np.arange(6, dtype=np.float32).reshape(2, 3), np.array([3, 1, 4]))
    for found, meant in zip(arrays(pickle.dumps(pair, protocol)), pair, strict=True):
        np.testing.assert_array_equal(found, meant)
        assert found.dtype == meant.dtype


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("wrapped", [lambda bad: bad, lambda bad: [np.zeros(2), {"x": bad}]])
def test_a_call_in_a_pickle_is_refused_and_does_not_happen(protocol, wrapped, tmp_path):
    touched = tmp_path / "touched"
    for bad in (
        _Command(os.system, f"touch {touched}"),
        _Command(Path.touch, touched),
        _Command(eval, f"open({str(touched)!r}, 'w')"),
        _Command(getattr, [], "append"),
    ):
        with pytest.raises(ForbiddenPickleError):
            arrays(pickle.dumps(wrapped(bad), protocol))
    assert not touched.exists()


def test_an_array_of_objects_is_refused():
    with pytest.raises(ForbiddenPickleError, match="no plain numbers"):
        arrays(pickle.dumps(np.array([_Command(print, "hello")], dtype=object), 4))


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04.", b"\x80\x04cos\nsystem\n."])
def test_what_is_no_pickle_of_arrays_is_refused(content):
    with pytest.raises(ForbiddenPickleError):
        arrays(content)
