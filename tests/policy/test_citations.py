"""Each formula has a source, and each source an entry in docs/references.bib."""

import re

import pytest

from policy.tree import bibliography, text_files, where
from qkvbench.variant.catalogue import CATALOGUE

CITATION = re.compile(r"arXiv:(\d{4}\.\d{5})")


def test_every_citation_has_an_entry_in_the_bibliography():
    entries = bibliography()
    unknown = [
        f"{where(path, text, found.start())} cites {found[0]}"
        for path in text_files()
        for text in [path.read_text()]
        for found in CITATION.finditer(text)
        if found[1] not in entries
    ]
    assert unknown == []


def test_every_entry_of_the_bibliography_says_who_what_and_when():
    assert bibliography()
    for entry in bibliography().values():
        assert {"author", "title", "year"} <= entry.keys()
        # What has no number to be found by says in words what it is.
        assert {"eprint", "archiveprefix"} <= entry.keys() or "note" in entry


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_every_variant_has_a_citation_or_a_hypothesis(entry):
    assert re.match(r"arXiv:\d{4}\.\d{5}|hypothesis: \w", entry.origin)
    assert entry.about
    assert entry.about[0].islower()


def test_names_and_equations_of_the_catalogue_are_different_and_canonical():
    from qkvbench.variant import parse, write

    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
    assert len({entry.variant for entry in CATALOGUE}) == len(CATALOGUE)
    assert [write(parse(entry.equation)) for entry in CATALOGUE] == [
        entry.equation for entry in CATALOGUE
    ]
