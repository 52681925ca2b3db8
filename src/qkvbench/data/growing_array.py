"""A NumPy file that grows row by row, so that no array has to fit in memory to be saved."""

from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Num


class GrowingArray:
    """A `.npy` file to which rows are appended; it has the bytes that `np.save` would write."""

    def __init__(self, path: Path, dtype: np.typing.DTypeLike, row: tuple[int, ...] = ()) -> None:
        self.dtype = np.dtype(dtype)
        self.row = row
        self.rows = 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, rows: Num[np.ndarray, "..."]) -> None:
        """Write some rows behind those that are there."""
        assert rows.shape[1:] == self.row, (rows.shape, self.row)
        self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += len(rows)

    def _write_header(self) -> None:
        # NumPy leaves room in a header for the first size to grow, so its length never changes.
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.rows, *self.row),
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> "GrowingArray":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write how many rows there are, and close the file."""
        with self._file:
            self._file.seek(0)
            self._write_header()
