"""After any sequence of operations on a store, done runs stay done and damage is named."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fake_study import experiments, record
from qkvbench.results.store import Store

EXPERIMENTS = experiments("digits", seeds=1)[:4]
ENDINGS = ["done", "failed", "diverged", "oom", "killed", "interrupted"]
EXPERIMENT = st.sampled_from(EXPERIMENTS)
DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "a number that is none": lambda content: content.replace(b'"seed": ', b'"seed": NaN, "s": '),
    "another version": lambda content: content.replace(
        b'"schema_version": 1', b'"schema_version": 99'
    ),
}


def made(experiment, status):
    good = record(experiment)
    if status == "done":
        return good
    changed = {"status": status, "reason": "made for tests", "metrics": {}, "observed": None}
    return good.model_copy(update=changed)


class StoreMachine(RuleBasedStateMachine):
    """A store, and beside it what it must say of each run."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(self.folder)
        self.statuses, self.damaged = {}, set()

    def teardown(self):
        shutil.rmtree(self.folder)

    def path(self, experiment):
        return self.folder / "runs" / f"{experiment.id}.json"

    @rule(experiment=EXPERIMENT, status=st.sampled_from(ENDINGS))
    def write(self, experiment, status):
        self.store.write_run(made(experiment, status))
        if not (self.statuses.get(experiment.id) == "done" and experiment.id not in self.damaged):
            self.statuses[experiment.id] = status
        self.damaged.discard(experiment.id)

    @rule(experiment=EXPERIMENT, damage=st.sampled_from(list(DAMAGES)))
    def damage(self, experiment, damage):
        if experiment.id in self.statuses and experiment.id not in self.damaged:
            content = self.path(experiment).read_bytes()
            self.path(experiment).write_bytes(DAMAGES[damage](content))
            self.damaged.add(experiment.id)
            del self.statuses[experiment.id]

    @rule(experiment=EXPERIMENT)
    def lose(self, experiment):
        self.path(experiment).unlink(missing_ok=True)
        self.statuses.pop(experiment.id, None)
        self.damaged.discard(experiment.id)

    @rule(experiment=EXPERIMENT)
    def leave_half_a_write(self, experiment):
        path = self.path(experiment)
        path.parent.mkdir(exist_ok=True)
        path.with_name(f".{path.name}.1.ab.tmp").write_text("{")

    @invariant()
    def each_run_is_told_once_and_all_damage_is_named(self):
        shelf = self.store.runs()
        assert {each.id: each.status for each in shelf.good} == self.statuses
        assert {each.path.stem for each in shelf.damaged} == self.damaged
        for experiment in EXPERIMENTS:
            done = self.store.done(experiment)
            assert (done is not None) == (self.statuses.get(experiment.id) == "done")


def _machine(examples, steps):
    case = type("Case", (StoreMachine.TestCase,), {})
    case.settings = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    return case


TestAFewOrders = _machine(8, 12)
TestManyOrders = pytest.mark.nightly(_machine(500, 50))
