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


class _Stated(_Command):
    """A call, and the state that its result is given."""

    def __init__(self, state, *call):
        super().__init__(*call)
        self.state = state

    def __reduce__(self):
        return *super().__reduce__(), self.state


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


@pytest.mark.parametrize("kind", ["O", "V8", [("a", "O")]], ids=str)
def test_bytes_are_never_taken_for_addresses_of_objects(kind):
    # An array of objects on a buffer would follow whatever addresses the bytes are.
    with pytest.raises(ForbiddenPickleError):
        arrays(pickle.dumps(_Command(np.ndarray, (1,), kind, bytes(8)), 4))


def test_a_type_takes_nothing_but_its_byte_order_from_a_pickle():
    # The flags say that objects are within; NumPy's own type would believe them.
    flags = (3, "<", None, None, None, -1, -1, 0x3F)
    array = (1, (1,), _Stated(flags, np.dtype, "f8", 0, 1), 0, bytes(8))
    made = _Stated(array, np.empty(0).__reduce__()[0], np.ndarray, (0,), b"b")
    found = arrays(pickle.dumps(made, 4))
    assert found.dtype == np.float64
    assert not found.dtype.hasobject


def test_arrays_of_either_order_keep_their_places():
    array = np.arange(12, dtype=">i4").reshape(3, 4)
    for laid in (array, np.asfortranarray(array)):
        assert np.array_equal(arrays(pickle.dumps(laid, 4)), array)
