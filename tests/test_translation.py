"""Catalogues are read as they are meant, and what says the same lies in one split."""

from itertools import combinations
from zipfile import ZipFile

import pytest

from qkvbench.data.catalogues import gettext_pairs, interface_pairs, json_pairs, po_pairs
from qkvbench.tasks.translation import SCORED, SHARES, normalize, split_pairs

PO = r"""
msgid ""
msgstr ""
"Language: de\n"

#: somewhere.py:7
#, python-format
msgid "%(used)s of "
"%(quota)s"
msgstr "%(used)s von "
"%(quota)s"

#, fuzzy
#, python-format
msgid "a guess"
msgstr "ein Rat"

msgid "a \"quote\"\\ and\ta tab"
msgstr "ein \"Zitat\"\\ und\tein Tab"

msgid "not translated"
msgstr ""

#~ msgid "obsolete"
#~ msgstr "veraltet"

msgctxt "of a group"
msgid "User"
msgid_plural "Users"
msgstr[0] "Benutzer"
msgstr[1] "Die Benutzer"
"""


def test_messages_of_gettext_are_read_whole_without_guesses_and_what_is_obsolete():
    assert list(po_pairs(PO.splitlines())) == [
        ("%(used)s of %(quota)s", "%(used)s von %(quota)s"),
        ('a "quote"\\ and\ta tab', 'ein "Zitat"\\ und\tein Tab'),
        ("User", "Benutzer"),
        ("Users", "Die Benutzer"),
    ]


def test_texts_of_one_place_in_two_files_are_a_pair(tmp_path):
    with ZipFile(tmp_path / "wheel", "w") as archive:
        for language, text in (("en", '"Light {name}"'), ("de", '"Licht {name}"')):
            inside = f'{{"entity": {{"light": {{"name": {text}, "only {language}": "a"}}}}}}'
            archive.writestr(f"one/translations/{language}.json", inside)
        archive.writestr("two/translations/de.json", '{"title": "Ohne Vorlage"}')
        archive.writestr("three/locale/de/LC_MESSAGES/x.po", PO)
        archive.writestr("three/locale/fr/LC_MESSAGES/x.po", PO)
        assert list(json_pairs(archive)) == [("Light {name}", "Licht {name}")]
        assert list(gettext_pairs(archive)) == list(po_pairs(PO.splitlines()))


@pytest.fixture(name="pairs", scope="module")
def _pairs():
    return interface_pairs()


def test_pairs_are_different_texts_of_one_line(pairs):
    assert len(pairs) > 31_000
    for pair in pairs:
        assert pair[0] != pair[1]
        assert all(text and text == " ".join(text.split()) for text in pair)


def test_what_says_the_same_in_english_lies_in_one_split(pairs):
    splits = split_pairs(pairs)
    assert [*splits] == [*SHARES]
    things = {name: {normalize(english) for english, _ in split} for name, split in splits.items()}
    for one, two in combinations(things.values(), 2):
        assert one.isdisjoint(two)
    assert sum(map(len, things.values())) == len({normalize(english) for english, _ in pairs})
    # Training has every way to say it; the others ask for each thing once.
    assert {*splits["train"]} == {pair for pair in pairs if normalize(pair[0]) in things["train"]}
    for name, most in SCORED.items():
        assert most <= len(splits[name]) == len(things[name])


@pytest.mark.parametrize(
    ("one", "two"),
    [("Zone 1 on", "zone 27 ON!"), ("Log in", "login"), ("{host_name}:", "Host name"), ("é", "É")],
)
def test_case_punctuation_blanks_and_digits_are_no_difference(one, two):
    assert normalize(one) == normalize(two)


@pytest.mark.parametrize(
    ("one", "two"), [("Zone 1", "Zone"), ("→", "≥"), ("on", "off"), ("a", "b")]
)
def test_words_and_signs_alone_are_one(one, two):
    assert normalize(one) != normalize(two)


def test_of_several_translations_the_one_that_was_found_most_often_is_asked_for():
    pairs = {(f"text {letter}", "einmal"): 1 for letter in "abcdefghijklmnopqrstuvwxyz" * 3}
    pairs |= {(english, "oft"): 3 for english, _ in pairs}
    splits = split_pairs(pairs)
    assert {german for name in SCORED for _, german in splits[name]} <= {"oft"}
    assert split_pairs(dict(reversed(pairs.items()))) == splits
