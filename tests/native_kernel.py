"""The mark of tests of the native kernel, which a machine without a C++ compiler does not have."""

import pytest

from qkvbench import native

missing = native.missing_requirement()
needs_library = pytest.mark.skipif(missing is not None, reason=f"no native kernel: {missing}")
