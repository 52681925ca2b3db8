"""The seconds that each test file takes, against those that `budget.toml` allows it.

A file over its budget fails no run: the ten that are worst are printed at the end.
"""

import tomllib
from collections import Counter
from pathlib import Path

import pytest

BUDGET = Path(__file__).with_suffix(".toml")
QUICK = "not slow"
SHOWN = 10


class Budget:
    """A plugin that adds up the seconds of each file, of all workers together."""

    def __init__(self) -> None:
        written = tomllib.loads(BUDGET.read_text())
        self.default_s, self.files_s = written["default"], written["files"]
        self.spent_s: Counter[str] = Counter()

    def allowed_s(self, file: str) -> float:
        """The budget of a file, given by its path from the root."""
        return self.files_s.get(file.removeprefix("tests/"), self.default_s)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        """Give workers the long files first: none is left with one while the others are idle."""
        if hasattr(config, "workerinput"):
            items.sort(key=lambda item: -self.allowed_s(_file(item.nodeid)))

    def pytest_runtest_logreport(self, report):
        self.spent_s[_file(report.nodeid)] += report.duration

    def pytest_terminal_summary(self, terminalreporter, config):
        if QUICK not in config.option.markexpr:
            return
        over_s = {file: spent - self.allowed_s(file) for file, spent in self.spent_s.items()}
        terminalreporter.section(f"seconds, budget: the worst of {len(over_s)} files")
        for file in sorted(over_s, key=over_s.__getitem__, reverse=True)[:SHOWN]:
            row = f"{self.spent_s[file]:7.1f} {self.allowed_s(file):5.0f}  {file}"
            terminalreporter.line(row, yellow=over_s[file] > 0)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]
