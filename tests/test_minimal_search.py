"""The search for the smallest model: what it tries, keeps and leaves out, on made-up gaps."""

import minimal_search
import pytest
from minimal_search import BASELINE, EQUATIONS, search, size

from qkvbench.model import CHANGES, parse_arm
from qkvbench.results.store import Store


def gaps(worse):
    """Of an arm in which one of these parts is."""

    def found(arm):
        return {"a": 0.01, "b": 1.0 if any(part in arm.split("~") for part in worse) else -1.0}

    return found


@pytest.mark.parametrize("worse", [(), ("no-ff",), ("no-ff", "q=k=v-diag", "rms-no-scale")])
def test_every_kept_step_is_smaller_and_has_no_part_that_was_refused(worse):
    steps, now, refused = list(search(gaps(worse), allowed=0.02)), size(BASELINE), set()
    for step in steps:
        assert step.parameters == size(step.arm) < now
        parts = {*step.arm.split("~")}
        assert step.kept == (not parts & {*worse})
        assert not parts & refused
        if step.kept:
            now = step.parameters
        else:
            (part,) = parts & {*worse}
            refused.add(part)
    assert refused == {*worse}


def test_the_largest_saving_comes_first_and_nothing_is_tried_twice():
    steps = list(search(gaps(()), allowed=-2.0))
    assert not any(step.kept for step in steps)
    assert [step.parameters for step in steps] == sorted(step.parameters for step in steps)
    assert steps[0].arm == "q,k,v~no-ff"
    arms = [step.arm for step in steps]
    assert len(arms) == len({*arms})
    named = {"~".join(parse_arm(arm).changes) or arm for arm in arms}
    assert {*EQUATIONS} <= named
    smaller = {name for name in CHANGES if size(f"{BASELINE}~{name}") < size(BASELINE)}
    assert named == {*EQUATIONS} | smaller


@pytest.mark.slow
def test_the_steps_of_a_folder_are_one_study_and_are_run_once(tmp_path, monkeypatch):
    monkeypatch.setattr(minimal_search, "TASKS", ("sort",))
    folder, tried = tmp_path / "found", ["q,k,v~no-ff", "q,k,v~half-ff"]
    first = [minimal_search._gaps(folder, arm, seeds=1) for arm in tried]
    assert Store(folder).study().variants == [BASELINE, *tried]
    written = {each: each.stat().st_mtime_ns for each in (folder / "runs").iterdir()}
    # The same command again, after it was stopped.
    assert [minimal_search._gaps(folder, arm, seeds=1) for arm in tried] == first
    assert {each: each.stat().st_mtime_ns for each in (folder / "runs").iterdir()} == written
    assert all(set(gaps) == {"sort"} for gaps in first)
