"""Code speaks the field's language: retired names stay retired, and docstrings name their noun."""

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src/qkvbench"

# Names that had a standard term all along; docs/glossary.md has the few words that are ours.
RETIRED = [
    "Turner",
    "TurnedBack",
    "turned_back",
    "turned_coordinates",
    "NativePass",
    "TritonPass",
    "OnePass",
    "one_pass",
    "Rooms",
    "Pages",
    "Paged",
    "RowType",
    "RowName",
    "ROW_TYPES",
    "ROW_NAMES",
    "UNSCORED",
    "Outcome",
    "redrawn",
    "Writing",
    "seen_through",
    "begin_with",
    "level_bytes",
    "product_s",
    "sharpness",
    "Lane",
    "Meeting",
    "keep_end",
    "kept_on_the_way",
    "taken_up",
    "over_devices",
    "likeliest",
    "searched",
    "beaten_s",
    "beating",
    "swept",
    "carry_out",
    "no_start",
    "stand_in",
    "nobody",
]
# Functions are named by their result or their effect.
PARTICIPLES = [
    "seen",
    "told",
    "kept",
    "found",
    "made",
    "asked",
    "ended",
    "said",
    "looked",
    "begun",
    "given",
    "drawn",
    "swept",
    "opened",
    "spoken",
    "stated",
    "converted",
    "checked",
    "inspected",
]


def _trees():
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE), ast.parse(path.read_text(encoding="utf-8"))


def test_retired_names_are_not_used():
    retired = set(RETIRED)
    used = {
        f"{path}: {node.id if isinstance(node, ast.Name) else node.name}"
        for path, tree in _trees()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id in retired)
        or (isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in retired)
    }
    assert not used, sorted(used)


def test_no_function_is_named_by_a_bare_participle():
    named = {
        f"{path}: {node.name}"
        for path, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.strip("_") in PARTICIPLES
    }
    assert not named, sorted(named)


def test_docstrings_begin_with_their_noun_or_verb():
    """Not with "What", after which the reader has to solve for the noun."""
    vague = {
        f"{path}: {docstring.splitlines()[0]}"
        for path, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and (docstring := ast.get_docstring(node))
        # A recipe's caption may be the question that it asks.
        and "?" not in docstring.splitlines()[0]
        and re.match(r"(What|Where|Who|Nobody|Nothing)\b", docstring)
    }
    assert not vague, sorted(vague)


def test_modules_that_others_import_have_no_underscore():
    private = {
        f"{path}: {node.module}"
        for path, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and any(part.startswith("_") for part in (node.module or "").split("."))
        and (node.module or "").startswith("qkvbench")
    }
    assert not private, sorted(private)
