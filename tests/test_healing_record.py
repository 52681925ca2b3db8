"""The table and the figures of healing in docs/convert.md are those of their records."""

import json
from pathlib import Path

import healing
import pytest

ROOT = Path(__file__).parents[1]
RECORDS = {name: ROOT / "benchmarks" / f"healing-{name}.jsonl" for name in healing.SIZES}
FIGURES = {"minilm-l6": "healing.svg", "smollm2-135m": "healing-smollm2.svg"}


def rows(name):
    """The lines of a record."""
    return [json.loads(line) for line in RECORDS[name].read_text().splitlines()]


@pytest.mark.parametrize("name", RECORDS)
def test_the_figure_is_drawn_from_the_record(name):
    drawn = healing.drawing(rows(name))
    assert (ROOT / "docs" / FIGURES[name]).read_text(encoding="utf-8") == drawn


def test_the_table_is_that_of_the_record():
    page = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
    assert healing.table(rows("smollm2-135m")) in page


def test_every_case_had_the_same_rates_and_was_measured_at_the_best_one():
    first = healing.SIZES["smollm2-135m"].budgets[0]
    tried = [row for row in rows("smollm2-135m") if row["tokens"] == first]
    for case in {row["case"] for row in tried}:
        own = [row for row in tried if row["case"] == case]
        assert {row["rate"] for row in own} == set(healing.SIZES["smollm2-135m"].rates)
        [measured] = [row for row in own if "plays" in row]
        assert measured["deciding"] == min(row["deciding"] for row in own)


def test_the_best_rate_and_the_mean_of_seeds_are_shown():
    def row(tokens, rate, seed, deciding, nats):
        recall = {"copy": 0.5, "lookup": 0.004}
        return {"case": "a", "tokens": tokens, "rate": rate, "seed": seed, "deciding": deciding,
                "plays": [nats, nats + 0.2], "recall": recall}  # fmt: skip

    original = row(0, 0.0, 0, 0.0, 1.9) | {"case": "original"}
    made = [original, row(0, 0.0, 0, 0.0, 2.9), row(8, 0.1, 0, 0.9, 9.0), row(8, 0.2, 0, 0.3, 2.3),
            row(8, 0.2, 1, 0.3, 2.5)]  # fmt: skip
    shown = healing.table(made).splitlines()
    assert shown[2] == "| original | 7.4 · .50, 0 |  |"
    assert shown[3] == "| a | 20.1 · .50, 0 | 12.2 · .50, 0 |"
