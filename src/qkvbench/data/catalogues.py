"""Texts of user interfaces, English and German: catalogues that people translated."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from zipfile import ZipFile

from qkvbench.data.wheel import Wheel, open_wheel

Pair = tuple[str, str]

_LETTERS = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


@dataclass(frozen=True)
class Catalogue:
    """A wheel with catalogues, and the function that reads its pairs."""

    wheel: Wheel
    pairs: Callable[[ZipFile], Iterator[Pair]]


def interface_pairs() -> dict[Pair, int]:
    """Distinct pairs of an English and a German text, each with its number of occurrences.

    Each text is on one line with single blanks. Placeholders (``{name}``, ``%s``) stay as they are.
    No text is empty, and none equals its translation. Raises DataUnavailableError if a wheel is not
    available.
    """
    found: dict[Pair, int] = {}
    for catalogue in CATALOGUES:
        # Opened once: opening a wheel with so many files again for each of them takes minutes.
        with open_wheel(catalogue.wheel) as archive:
            for english, german in catalogue.pairs(archive):
                pair = (" ".join(english.split()), " ".join(german.split()))
                if all(pair) and pair[0] != pair[1]:
                    found[pair] = found.get(pair, 0) + 1
    return found


def json_pairs(archive: ZipFile) -> Iterator[Pair]:
    """The texts under the same key in two JSON files of one folder."""
    names = set(archive.namelist())
    for german in sorted(name for name in names if name.endswith("/de.json")):
        folder = german.removesuffix("/de.json")
        english = f"{folder}/en.json"
        if folder.endswith("/translations") and english in names:
            translated = dict(_leaves(json.loads(archive.read(german)), ()))
            for place, text in _leaves(json.loads(archive.read(english)), ()):
                if place in translated:
                    yield text, translated[place]


def gettext_pairs(archive: ZipFile) -> Iterator[Pair]:
    """The messages of all German catalogues of gettext, singular and plural."""
    for name in sorted(archive.namelist()):
        if name.endswith(".po") and "/de/" in name:
            yield from po_pairs(archive.read(name).decode().splitlines())


def po_pairs(lines: Iterable[str]) -> Iterator[Pair]:
    """The messages of one catalogue, without obsolete and fuzzy ones."""
    message: dict[str, str] = {}
    keyword, guessed = "", False
    # An empty line ends a message, the last one's too.
    for line in [*lines, ""]:
        if not line.strip():
            if not guessed:
                yield from _message_pairs(message)
            message, guessed = {}, False
        elif line.startswith("#,"):
            guessed = guessed or "fuzzy" in line
        elif not line.startswith("#"):
            if not line.startswith('"'):
                keyword = line.split()[0]
            message[keyword] = message.get(keyword, "") + _unescape(line)


def _message_pairs(message: dict[str, str]) -> Iterator[Pair]:
    """The pairs of one message: of one text, or of a singular and a plural."""
    # German has two forms; the second is for every number but one, as in English.
    pairs = (("msgid", "msgstr"), ("msgid", "msgstr[0]"), ("msgid_plural", "msgstr[1]"))
    for english, german in pairs:
        # The message of an empty text is the header of the catalogue.
        if message.get(english) and message.get(german):
            yield message[english], message[german]


def _unescape(line: str) -> str:
    """The text between the quotes of a line."""
    written = _LETTERS.search(line)
    letters = written[1] if written else ""
    return _ESCAPED.sub(lambda found: _ESCAPES.get(found[1], found[1]), letters)


def _leaves(value: object, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    match value:
        case str():
            yield place, value
        case dict():
            for key, part in value.items():
                yield from _leaves(part, (*place, key))
        case _:
            return


# The first asks for a newer Python than ours to run; only its texts are read.
CATALOGUES = (
    Catalogue(
        Wheel(
            name="homeassistant",
            version="2026.2.3",
            file="homeassistant-2026.2.3-py3-none-any.whl",
            sha256="8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c",
            python="3.14",
        ),
        json_pairs,
    ),
    Catalogue(
        Wheel(
            name="apache-superset",
            version="6.1.0",
            file="apache_superset-6.1.0-py3-none-any.whl",
            sha256="4b5886b2d6389a32df790aeae2532ad72529bce1af93b6edf2d1b2a8bf658748",
        ),
        gettext_pairs,
    ),
    Catalogue(
        Wheel(
            name="horizon",
            version="27.0.0",
            file="horizon-27.0.0-py3-none-any.whl",
            sha256="8a981dae4fb6626e71553aa185f6e429b0b1efb86b04b0a72c3b18ee04f1f990",
        ),
        gettext_pairs,
    ),
)
