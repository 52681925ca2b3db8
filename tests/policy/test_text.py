"""What must not be written anywhere, and what only in one place."""

import ast
import re

import pytest

from policy.tree import ROOT, SOURCE, python_files, text_files, where
from qkvbench import claims
from qkvbench.claims.kit.reported import (
    FIVE_SHOT,
    LATER_PERPLEXITY,
    PERPLEXITY_1_2B,
    PERPLEXITY_300M,
    SORT,
)

# An address of a file on one machine; system folders that every machine has are no such thing.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/}$*~)\]-])/(?!usr/|bin/|dev/|etc/|proc/|sys/)[a-z][\w.-]*/[\w.-]+"
)
INDEX_OPTION = re.compile(r"\b(extra-)?index-url\b|\bfind-links\b|\btrusted-host\b", re.IGNORECASE)
PRIVATE_HOST = re.compile(
    r"https?://((?!127\.)\d+\.\d+\.\d+\.\d+|[\w.-]+\.(internal|local|lan|corp|home))\b"
)

# Figures of a popular article that could not be reproduced: a result here comes from a run.
ARTICLE_FIGURES = re.compile(
    r"(?<![\w.])(85\.2|84\.9|84\.7|77\.5|62\.3|28\.4|18\.9|12\.3|10\.8)(?![\w.]*\d)"
)

BYTES_TO_TEXT = re.compile(r"\b1024\s*\*\*|(?<!/)/\s*1024\b")

# Its Unpickler knows arrays of numbers and no other name; tests/test_array_pickle.py attacks it.
ARRAYS_ONLY = SOURCE / "data" / "array_pickle.py"
LOADS_CODE = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}


# The scores of a record's items are bytes in base64, in which a slash is a digit.
PACKED = re.compile(r'"(values|weights)": "[A-Za-z0-9+/]*=*"')


def _matches(pattern, files):
    return [
        f"{where(path, text, found.start())}: {found[0]}"
        for path in files
        for text in [PACKED.sub('"packed"', path.read_text())]
        for found in pattern.finditer(text)
    ]


@pytest.mark.parametrize("pattern", [MACHINE_PATH, INDEX_OPTION, PRIVATE_HOST])
def test_no_file_names_a_machine_or_a_place_to_install_from(pattern):
    this_file = ROOT / "tests" / "policy" / "test_text.py"
    files = [path for path in text_files() if path not in (this_file, ROOT / "LICENSE")]
    assert _matches(pattern, files) == []


def test_a_path_of_a_machine_is_recognized():
    assert MACHINE_PATH.search('open("/home/ann/data")')
    assert MACHINE_PATH.search("see /srv/data/set")
    assert MACHINE_PATH.search(PACKED.sub("", '"values": "/home/ann/my_data"'))
    assert not MACHINE_PATH.search(PACKED.sub("", '"values": "AAAA+/dUQ/A2DXEB=="'))
    assert not MACHINE_PATH.search("#!/usr/bin/env bash")
    assert not MACHINE_PATH.search("src/qkvbench/variant and https://arxiv.org/abs")


def test_bytes_become_text_in_one_place():
    files = [path for path in python_files(SOURCE) if path != SOURCE / "cost" / "units.py"]
    assert _matches(BYTES_TO_TEXT, files) == []


def test_no_figure_of_the_article_is_written_in_the_source():
    files = [path for path in python_files(SOURCE) if SOURCE / "claims" not in path.parents]
    found = {path: ARTICLE_FIGURES.findall(_code(path)) for path in files}
    assert {path: figures for path, figures in found.items() if figures} == {}


def _distinctive(figure):
    """Whether a figure, met elsewhere, is hardly a coincidence: three digits, not all of them 0."""
    digits = figure.text.split()[0].rstrip("%×").replace(",", "").lstrip("-0.").replace(".", "")
    return len(digits) >= 3 and set(digits[1:]) != {"0"} and "." in figure.text


def _code(path):
    """What a module says, without the caption of a recipe: the one other place for a source."""
    text = path.read_text()
    caption = ast.get_docstring(ast.parse(text), clean=False)
    return text.replace(caption, "") if caption and path.parent.name == "recipes" else text


def test_no_figure_of_a_source_is_written_in_the_package_but_in_the_ledger():
    printed = {each for name in claims.names() for each in claims.find(name).figures}
    tables = (PERPLEXITY_300M, PERPLEXITY_1_2B, FIVE_SHOT, LATER_PERPLEXITY, SORT)
    figures = printed | {each for table in tables for each in table.values()}
    texts = sorted({each.text.split()[0].rstrip("%×") for each in figures if _distinctive(each)})
    assert len(texts) > 40
    written = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, texts))})(?![\w.]*\d)")
    found = [
        f"{path.relative_to(SOURCE)}: {each[0]}"
        for path in [*python_files(SOURCE), *SOURCE.rglob("*.html")]
        if SOURCE / "claims" not in path.parents
        for each in written.finditer(_code(path) if path.suffix == ".py" else path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize("path", python_files(SOURCE), ids=lambda path: path.stem)
def test_no_module_loads_what_could_be_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names):
                assert LOADS_CODE.isdisjoint(alias.name.split(".")[0] for alias in names)
            case ast.ImportFrom(module="pickle", names=names) if path == ARRAYS_ONLY:
                assert {alias.name for alias in names} == {"Unpickler", "UnpicklingError"}
            case ast.ImportFrom(module=str(module)):
                assert module.split(".")[0] not in LOADS_CODE
            case ast.Call(func=ast.Name(id=name)):
                assert name not in ("eval", "exec")
            case ast.Attribute(value=ast.Name(id="torch"), attr=name):
                assert name != "load"
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=allowed)):
                assert not allowed


# Opens a lock, which has no text. Kernels are named by its hash: a change makes all be built again.
LOCKS_ONLY = SOURCE / "native" / "build.py"
# Their `open` is not that of a text file.
OTHER_OPENS = {"os", "Image", "archive", "cache", "sweep.engine"}


def _locale_decides(call):
    """Whether a call reads or writes text in the encoding of the machine's locale."""
    match call.func:
        case ast.Name(id="open"):
            modes = call.args[1:2]
        case ast.Attribute(value, "open") if ast.unparse(value) not in OTHER_OPENS:
            modes = call.args[:1]
        case ast.Attribute(attr="fdopen"):
            modes = call.args[1:2]
        case ast.Attribute(attr="read_text" | "write_text") | ast.Name(id="TextIOWrapper"):
            modes = []
        case _:
            return False
    words = {each.arg: each.value for each in call.keywords}
    mode = next((each.value for each in [*modes, words.get("mode")] if _is_text(each)), "r")
    return "b" not in mode and "encoding" not in words


def _is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize(
    ("line", "decided"),
    [
        ("path.read_text()", True),
        ("path.write_text(text)", True),
        ("path.open()", True),
        ("path.open('w')", True),
        ("open(path, 'a')", True),
        ("TextIOWrapper(file)", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.open('w', encoding='utf-8')", False),
        ("path.open('rb')", False),
        ("path.open(mode='xb')", False),
        ("os.open(path, os.O_RDONLY)", False),
        ("Image.open(path)", False),
    ],
)
def test_a_text_in_the_encoding_of_the_locale_is_recognized(line, decided):
    assert _locale_decides(ast.parse(line).body[0].value) == decided


def test_every_text_file_names_its_encoding():
    """Else another locale gives other tokens and scores, and writes them into a shared cache."""
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}: {ast.unparse(node)}"
        for path in python_files(SOURCE)
        if path != LOCKS_ONLY
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _locale_decides(node)
    ]
    assert found == []
