"""An experiment that begins with the weights of another: what is taken over, kept and run first."""

import fcntl
import json
import multiprocessing.forkserver as server
from dataclasses import replace

import numpy as np
import pytest

from qkvbench import tasks
from qkvbench.backends.torch import Learner, read
from qkvbench.cli.parser import RequestError, parsed
from qkvbench.cli.run import answer
from qkvbench.data.cache import alone, cache_folder, writing
from qkvbench.experiment import Experiment, Training, from_json, to_json
from qkvbench.model import Learned
from qkvbench.recipes import Study
from qkvbench.reports import terminal
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.sweep.study import carry_out, to_run
from qkvbench.task_ref import parse_task
from qkvbench.train import ended, run
from qkvbench.train.artifacts import kept_record, kept_weights
from qkvbench.train.run import run_and_keep
from test_sweep import Noted

SHORT = Training(steps=3, batch=8, learning_rate=1e-2, warmup=1, evaluations=1, scored=16)
STUDY = Study("test", ("q,k,v", "q,k=v"), {"recall": 2}, start="sort", smoke=True)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    """Weights are kept apart from those of the person who runs the tests."""
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(name="server", scope="module")
def _server():
    """What processes know of the cache is what the server knew that forks them."""
    server._forkserver._stop()
    yield
    server._forkserver._stop()


def experiment(name="sort", variant="q,k=v", seed=0, **changed):
    task = tasks.find(name)
    base = Experiment(task.model, parse_task(name), task.version, SHORT, seed=0)
    return replace(base.vary(variants=[variant], seeds=[seed])[0], **changed)


def begun(name="recall", seed=1):
    """A run on another task than its start's, with the start's layers and other classes."""
    start = experiment()
    own = tasks.find(name)
    model = replace(own.model, geometry=start.model.geometry, blocks=start.model.blocks)
    return replace(experiment(name), model=model, seed=seed, start=start)


def arrays(weights):
    return {name: tensor.detach().numpy().copy() for name, tensor in weights.items()}


def test_what_agrees_is_taken_over_to_the_bit_and_the_rest_begins_as_the_seed_says():
    wanted = begun()
    fresh = arrays(Learner(replace(wanted, start=None)).weights())
    kept = arrays(read(ended(wanted.start)))
    learner = Learner(wanted)
    taken = set(learner.load_matching(ended(wanted.start)))
    assert {name for name in fresh if "blocks" in name} <= taken
    assert taken < set(fresh)
    for name, weight in arrays(learner.weights()).items():
        np.testing.assert_array_equal(weight, kept[name] if name in taken else fresh[name])
        # Trained or drawn otherwise: equal arrays would show nothing.
        if name in taken and "rotation" not in name:
            assert not np.array_equal(weight, fresh[name]), name
    assert {name for name in fresh if "head" in name}.isdisjoint(taken)


def test_the_kept_weights_are_those_that_the_run_ended_with():
    wanted = experiment()
    left = []
    record = run(wanted, at_end=lambda _e, _r, learner: left.append(arrays(learner.weights())))
    assert record.status == "done", record.reason
    kept = arrays(read(ended(wanted)))
    assert kept.keys() == left[0].keys()
    for name, weight in kept.items():
        np.testing.assert_array_equal(weight, left[0][name])


def test_a_run_goes_another_way_than_from_nothing_and_the_same_way_each_time():
    wanted = begun()
    first, second = run(wanted), run(wanted)
    assert first.status == "done", first.reason
    assert first.metrics == second.metrics
    assert first.metrics != run(replace(wanted, start=None)).metrics
    assert first.id != replace(wanted, start=None).id


def test_weights_that_were_deleted_or_damaged_are_made_again_with_the_same_bits():
    path = ended(experiment())
    before = path.read_bytes()
    path.unlink()
    assert kept_weights(experiment()) is None
    assert ended(experiment()).read_bytes() == before
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert kept_weights(experiment()) is None
    assert ended(experiment()).read_bytes() == before


def test_kept_weights_are_used_and_nothing_is_run_again():
    ended(experiment())
    steps = []
    record = run_and_keep(experiment(), lambda step, _loss: steps.append(step))
    assert steps == []
    assert record == kept_record(experiment())
    assert record.status == "done"


def test_the_cache_is_free_for_others_while_a_start_is_trained():
    taken = []

    def write(step, _loss):
        if step == 1:
            # As another process would, but refused at once where it would have to wait.
            with (cache_folder() / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                taken.append(step)

    run_and_keep(experiment(), write)
    assert taken == [1]


def test_who_makes_one_thing_keeps_nobody_from_making_another():
    with alone("one"), alone("other"), writing():
        pass


def test_an_experiment_and_its_start_survive_their_journey_through_json():
    wanted = replace(begun(), start=replace(experiment(seed=2), start=experiment(seed=3)))
    again = from_json(json.loads(json.dumps(to_json(wanted))))
    assert again == wanted
    assert again.id == wanted.id
    assert [start.seed for start in again.needed] == [2, 3]
    assert wanted.id not in {begun().id, replace(wanted, start=None).id, wanted.start.id}


def test_an_arm_begins_with_the_start_of_its_own_variant_and_seed():
    for each in STUDY.experiments():
        assert (each.task, each.start.task) == ("recall", "sort")
        assert (each.start.variant, each.start.seed) == (each.variant, each.seed)
        assert each.start.model.blocks == each.model.blocks
        assert each.start.start is None


def test_layers_that_do_not_agree_are_refused_in_words():
    with pytest.raises(ValueError, match=r"must agree in attention and size\.\n.* q,k=v,.* q,k,v,"):
        replace(experiment("sort", "q,k=v"), start=experiment("sort", "q,k,v"))


def test_a_file_that_lacks_a_layer_s_weight_is_refused_in_words(tmp_path):
    Learner(experiment(variant="q,k=v")).save(tmp_path / "weights")
    with pytest.raises(ValueError, match=r"blocks\.0\.attention\.v\S* is .* not in the file"):
        Learner(experiment(variant="q,k,v")).load_matching(tmp_path / "weights")


def test_sequences_longer_than_the_positions_are_refused_in_words():
    study = Study("test", ("q,k,v",), {"digits": 1}, start="lm-reviews")
    assert isinstance(study.model_of("digits").position, Learned)
    with pytest.raises(ValueError, match="whose sequences have 128 positions: it has 16"):
        study.experiments()


def carried_out(study, path):
    noted = Noted()
    carry_out(study, Store(path), command="test", jobs=2, fail_fast=False, progress=noted)
    return noted


@pytest.mark.usefixtures("server")
def test_starts_are_run_first_and_once_and_stand_in_the_store_without_being_of_the_study(tmp_path):
    # One seed of two tasks: an arm's start is the same for both.
    study = replace(STUDY, seeds={"recall": 1, "digits": 1})
    noted = carried_out(study, tmp_path / "store")
    assert noted.plans == [(6, 6)]
    assert [record.status for record in noted.endings] == ["done"] * 6
    assert [record.task for record in noted.endings][:2] == ["sort", "sort"]
    seen = view(Store(tmp_path / "store"))
    assert [task.name for task in seen.tasks] == ["recall", "digits"]
    assert [task.start for task in seen.tasks] == ["sort", "sort"]
    assert (len(seen.runs), seen.others) == (4, 0)
    assert "begin with the weights of their own runs on sort" in terminal.render(seen)

    assert carried_out(study, tmp_path / "store").plans == [(0, 4)]
    assert to_run(study.experiments(), Store(tmp_path / "store")) == []


@pytest.mark.usefixtures("server")
def test_a_study_that_was_stopped_goes_on_and_makes_lost_weights_again(tmp_path):
    store = Store(tmp_path / "store")
    carried_out(replace(STUDY, seeds={"recall": 1}), tmp_path / "store")
    first = {record.id: record for record in store.runs().good}
    starts = {each.start for each in STUDY.experiments()}
    for start in starts:
        if (weights := kept_weights(start)) is not None:
            weights.unlink()
    (lost,) = (each for each in STUDY.experiments() if each.id in first and each.variant == "q,k=v")
    (tmp_path / "store" / "runs" / f"{lost.id}.json").unlink()
    again = carried_out(replace(STUDY, seeds={"recall": 1}), tmp_path / "store")
    # Its own start and no other: what is done needs none.
    assert [record.id for record in again.endings] == [lost.start.id, lost.id]
    assert again.endings[1].metrics == first[lost.id].metrics


@pytest.mark.usefixtures("server")
def test_a_start_that_fails_fails_what_needs_it_with_the_reason_and_nothing_else(tmp_path):
    class HalfWild(Study):
        def experiments(self):
            return tuple(
                replace(each, start=replace(each.start, training=_wild(each.start.training)))
                if each.variant == "q,k=v"
                else each
                for each in super().experiments()
            )

    study = HalfWild("wild", STUDY.variants, {"recall": 1}, start="sort", smoke=True)
    noted = carried_out(study, tmp_path / "store")
    endings = {(record.task, record.variant): record for record in noted.endings}
    assert {key: record.status for key, record in endings.items()} == {
        ("sort", "q,k,v"): "done",
        ("sort", "q,k=v"): "diverged",
        ("recall", "q,k,v"): "done",
        ("recall", "q,k=v"): "failed",
    }
    reason = endings["recall", "q,k=v"].reason
    assert "weights of sort, q,k=v, seed 0" in reason
    assert "diverged" in reason
    assert endings["sort", "q,k=v"].reason in reason


def test_a_run_alone_whose_start_fails_is_a_record_with_the_reason():
    wanted = begun()
    wild = replace(wanted.start, training=_wild(wanted.start.training))
    record = run(replace(wanted, start=wild))
    assert record.status == "failed"
    assert "weights of sort, q,k=v, seed 0, whose run ended as diverged: At step" in record.reason


def test_a_dry_run_counts_the_starts_and_runs_nothing(tmp_path, capsys):
    words = ["run", "--variants", "q,k,v", "q,k=v", "--tasks", "recall", "digits", "--seeds", "2"]
    words += ["--start", "sort", "--dry-run", "--out", str(tmp_path / "store")]
    assert answer(parsed(words)) == 0
    said = capsys.readouterr().out
    assert "8 runs, of which 0 are done" in said
    assert "4 runs on sort come first, of which 0 are kept" in said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("start", "said"),
    [("sorted", "Did you mean sort"), ("lm-reviews", "whose sequences have 128 positions")],
)
def test_a_start_that_cannot_be_is_refused_before_anything_runs(tmp_path, start, said):
    words = ["run", "--variants", "q,k,v", "--tasks", "recall", "--start", start]
    with pytest.raises(RequestError, match=said):
        answer(parsed([*words, "--out", str(tmp_path / "store")]))
    assert not (tmp_path / "store").exists()


def _wild(training):
    return replace(training, learning_rate=1e30, warmup=0)
