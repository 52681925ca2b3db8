"""Documents out of a text file or of JSON lines."""

import json
import re
from collections.abc import Callable, Iterator

from qkvbench.data.cache import DataRefusedError
from qkvbench.data.own.files import shown, text

# Text is held a few times over while it is split.
TEXT_BYTES = 200 * 10**6
# So many documents make splits of the shares that they should have.
ENOUGH = 100
PIECE_BYTES = 1000


def text_documents(name: str, found: bytes) -> list[bytes]:
    """The paragraphs of a text, between blank lines; its lines if there are few of these.

    A text of few lines is cut at blanks into pieces of about a kilobyte.
    """
    plain = text(name, found).replace(b"\r\n", b"\n")
    cuts: list[Callable[[bytes], list[bytes]]] = [_paragraphs, _lines, _pieces]
    ways = [cut(plain) for cut in cuts]
    return next((way for way in ways if len(way) >= ENOUGH), max(ways, key=len))


def json_documents(name: str, found: bytes) -> list[bytes]:
    """The `text` of each line of a file, each of which is a JSON object."""
    lines = enumerate(text(name, found).splitlines(), start=1)
    return list(_objects(name, ((number, line) for number, line in lines if line.strip())))


def _objects(name: str, lines: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    for number, line in lines:
        where = f"Line {number:,} of '{name}'"
        form = 'Each line is an object with a text, as in {"text": "Once upon a time"}.'
        try:
            read = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = shown(str(error))
            raise DataRefusedError(f"{where} is no JSON: {said}.\n{form}") from None
        if not isinstance(read, dict):
            kind = type(read).__name__
            raise DataRefusedError(f"{where} is no JSON object but a {kind}.\n{form}")
        if not isinstance(read.get("text"), str):
            fields = shown(", ".join(map(str, read))) or "nothing"
            raise DataRefusedError(f"{where} has no field 'text' with a text: {fields}.\n{form}")
        try:
            document = read["text"].encode()
        except UnicodeEncodeError:
            raise DataRefusedError(
                f"{where} holds half a pair of surrogates (\\ud800 to \\udfff), which is no letter."
            ) from None
        if b"\0" in document:
            raise DataRefusedError(
                f"{where} holds the zero character (\\u0000), which parts documents here."
            )
        yield document


def _paragraphs(plain: bytes) -> list[bytes]:
    return _filled(re.split(rb"\n[ \t]*\n", plain))


def _lines(plain: bytes) -> list[bytes]:
    return _filled(plain.split(b"\n"))


def _pieces(plain: bytes) -> list[bytes]:
    """Pieces that end at a blank, or before a letter in writing without blanks."""
    at_blank, in_word = rb"(?s).{1,%d}(?:\s|$)" % PIECE_BYTES, rb"\S{1,%d}" % PIECE_BYTES
    # In UTF-8 these bytes go on with a letter.
    return _filled(re.findall(at_blank + rb"|" + in_word + rb"(?![\x80-\xbf])", plain))


def _filled(parts: list[bytes]) -> list[bytes]:
    return [part for part in (each.strip(b"\n") for each in parts) if part.strip()]
