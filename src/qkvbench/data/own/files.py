"""A file that a person names: its content, bounded, or an error that helps."""

from difflib import get_close_matches
from pathlib import Path

from qkvbench.data.cache import DataRefusedError

_MARK = b"\xef\xbb\xbf"
_SHOWN = 60


def missing_error(path: Path) -> DataRefusedError:
    """The error for a path at which there is nothing."""
    try:
        beside = [each.name for each in path.parent.iterdir()]
    except OSError:
        beside = []
    near = get_close_matches(path.name, beside, n=1)
    hint = f"\nDid you mean {shown(str(path.parent / near[0]))}?" if near else ""
    return DataRefusedError(f"There is no file or folder '{shown(str(path))}'.{hint}")


def content(path: Path, most: int) -> bytes:
    """The bytes of a file that is not empty and has at most so many."""
    name = shown(str(path))
    try:
        # A pipe or a device may never end.
        if not path.is_file():
            raise DataRefusedError(f"'{name}' is neither a file nor a folder of images.")
        size = path.stat().st_size
        if size > most:
            raise DataRefusedError(
                f"'{name}' has {size:,} bytes; held in memory, at most {most:,} are read."
                "\nGive a part of it."
            )
        found = path.read_bytes()
    except OSError as error:
        raise DataRefusedError(f"'{name}' cannot be read: {error.strerror}.") from None
    if not found.strip():
        raise DataRefusedError(f"'{name}' is empty.")
    return found


def text(name: str, found: bytes) -> bytes:
    """The same bytes without a byte order mark, which are UTF-8 without a zero."""
    found = found.removeprefix(_MARK)
    zero = found.find(b"\0")
    if zero >= 0:
        raise DataRefusedError(
            f"'{name}' is binary, not text: byte {zero + 1:,} is zero (in line "
            f"{_line(found, zero):,}).\nText is read as UTF-8 without zeros; if this is text in "
            "another encoding, convert it."
        )
    try:
        found.decode()
    except UnicodeDecodeError as error:
        raise DataRefusedError(
            f"'{name}' is not UTF-8: byte {error.start + 1:,} (in line "
            f"{_line(found, error.start):,}) is 0x{found[error.start]:02x}, which cannot stand "
            "there.\nIf this is text in another encoding, convert it, as in "
            "'iconv -f latin1 -t utf-8 OLD > NEW'."
        ) from None
    return found


def shown(said: str) -> str:
    """A text of a person or a file, cut to fit a sentence and without control characters."""
    plain = "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in said)
    if len(plain) <= _SHOWN:
        return plain
    # Of a long path the end is what tells it from others.
    return f"{plain[: _SHOWN // 4]}…{plain[-(3 * _SHOWN // 4 - 1) :]}"


def _line(found: bytes, place: int) -> int:
    return found.count(b"\n", 0, place) + 1
