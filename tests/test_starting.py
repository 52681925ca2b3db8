"""Experiments that depend on the weights of another: initial weights, the cache, and order."""

import fcntl
import json
import multiprocessing.forkserver as server
from dataclasses import replace

import numpy as np
import pytest

from qkvbench import tasks
from qkvbench.backends.torch import Learner, read
from qkvbench.cli.parser import RequestError, parse_request
from qkvbench.cli.run import answer
from qkvbench.data import cache
from qkvbench.data.cache import alone, cache_folder, writing
from qkvbench.experiment import Experiment, Training, from_json, to_json
from qkvbench.model import Learned
from qkvbench.recipes import Study
from qkvbench.reports import full
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.sweep.study import run_study, to_run
from qkvbench.task_ref import parse_task
from qkvbench.train import ensure_trained, run_with_dependencies
from qkvbench.train.artifacts import kept_record, kept_weights
from qkvbench.train.dependencies import in_order, phases, run_and_save
from qkvbench.train.run import run
from test_sweep import Noted

SHORT = Training(steps=3, batch=8, learning_rate=1e-2, warmup=1, evaluations=1, scored=16)
STUDY = Study("test", ("q,k,v", "q,k=v"), {"recall": 2}, init_from="sort", smoke=True)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    """A cache apart from that of the person who runs the tests."""
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(name="server", scope="module")
def _server():
    """A new fork server: processes get the environment of the server that forks them."""
    server._forkserver._stop()
    yield
    server._forkserver._stop()


def experiment(name="sort", variant="q,k=v", seed=0, **changed):
    task = tasks.find(name)
    base = Experiment(task.model, parse_task(name), task.version, SHORT, seed=0)
    return replace(base.vary(variants=[variant], seeds=[seed])[0], **changed)


def begun(name="recall", seed=1):
    """A run on another task than the one it is initialized from, with the same layers."""
    start = experiment()
    own = tasks.find(name)
    model = replace(own.model, geometry=start.model.geometry, blocks=start.model.blocks)
    return replace(experiment(name), model=model, seed=seed, init_from=start)


def arrays(weights):
    return {name: tensor.detach().numpy().copy() for name, tensor in weights.items()}


def test_matching_weights_are_loaded_to_the_bit_and_the_others_are_initialized_from_the_seed():
    wanted = begun()
    fresh = arrays(Learner(replace(wanted, init_from=None)).weights())
    kept = arrays(read(ensure_trained(wanted.init_from)))
    learner = Learner(wanted)
    taken = set(learner.load_matching(ensure_trained(wanted.init_from)))
    assert {name for name in fresh if "blocks" in name} <= taken
    assert taken < set(fresh)
    for name, weight in arrays(learner.weights()).items():
        np.testing.assert_array_equal(weight, kept[name] if name in taken else fresh[name])
        # Trained or drawn otherwise: equal arrays would show nothing.
        if name in taken and "rotation" not in name:
            assert not np.array_equal(weight, fresh[name]), name
    assert {name for name in fresh if "head" in name}.isdisjoint(taken)


def test_the_cached_weights_are_the_final_weights_of_the_run():
    wanted = experiment()
    left = []
    record = run(wanted, at_end=lambda _e, _r, learner: left.append(arrays(learner.weights())))
    assert record.status == "done", record.reason
    kept = arrays(read(ensure_trained(wanted)))
    assert kept.keys() == left[0].keys()
    for name, weight in kept.items():
        np.testing.assert_array_equal(weight, left[0][name])


def test_initial_weights_change_the_result_and_the_result_repeats():
    wanted = begun()
    first, second = run_with_dependencies(wanted), run_with_dependencies(wanted)
    assert first.status == "done", first.reason
    assert first.metrics == second.metrics
    assert first.metrics != run(replace(wanted, init_from=None)).metrics
    assert first.id != replace(wanted, init_from=None).id


def test_deleted_or_damaged_weights_are_trained_again_with_the_same_bits():
    path = ensure_trained(experiment())
    before = path.read_bytes()
    path.unlink()
    assert kept_weights(experiment()) is None
    assert ensure_trained(experiment()).read_bytes() == before
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert kept_weights(experiment()) is None
    assert ensure_trained(experiment()).read_bytes() == before


def test_cached_weights_are_used_without_a_second_run():
    ensure_trained(experiment())
    steps = []
    record = run_and_save(experiment(), lambda step, _loss: steps.append(step))
    assert steps == []
    assert record == kept_record(experiment())
    assert record.status == "done"


def test_the_cache_is_free_for_others_while_a_dependency_is_trained():
    taken = []

    def write(step, _loss):
        if step == 1:
            # As another process would, but refused at once where it would have to wait.
            with (cache_folder() / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                taken.append(step)

    run_and_save(experiment(), write)
    assert taken == [1]


def test_a_prepared_folder_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path))
    folder = cache.keep("texts", lambda making: (making / "a.txt").write_text("one"))
    hashed = []
    whole = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda path: hashed.append(path) or whole(path))
    assert [cache.lookup("texts") for _ in range(3)] == [folder] * 3
    assert len(hashed) <= 1
    (folder / "a.txt").write_text("two")
    assert cache.lookup("texts") is None


def test_an_image_that_is_none_is_no_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path))

    def make(_making):
        raise OSError("cannot identify image file")

    with pytest.raises(OSError, match="identify image"):
        cache.keep("images", make)


def test_locks_on_different_cache_folders_are_independent():
    with alone("one"), alone("other"), writing():
        pass


def test_an_experiment_and_its_dependencies_are_the_same_after_a_round_trip_through_json():
    wanted = replace(begun(), init_from=replace(experiment(seed=2), init_from=experiment(seed=3)))
    again = from_json(json.loads(json.dumps(to_json(wanted))))
    assert again == wanted
    assert again.id == wanted.id
    assert [start.seed for start in again.needed] == [2, 3]
    assert wanted.id not in {begun().id, replace(wanted, init_from=None).id, wanted.init_from.id}


def test_an_arm_is_initialized_from_the_run_of_its_own_variant_and_seed():
    for each in STUDY.experiments():
        assert (str(each.task), str(each.init_from.task)) == ("recall", "sort")
        assert (each.init_from.variant, each.init_from.seed) == (each.variant, each.seed)
        assert each.init_from.model.blocks == each.model.blocks
        assert each.init_from.init_from is None


def test_layers_that_do_not_agree_are_refused_in_words():
    with pytest.raises(ValueError, match=r"must agree in attention and size\.\n.* q,k=v,.* q,k,v,"):
        replace(experiment("sort", "q,k=v"), init_from=experiment("sort", "q,k,v"))


def test_a_file_that_lacks_a_layer_s_weight_is_refused_in_words(tmp_path):
    Learner(experiment(variant="q,k=v")).save(tmp_path / "weights")
    with pytest.raises(ValueError, match=r"blocks\.0\.attention\.v\S* is .* not in the file"):
        Learner(experiment(variant="q,k,v")).load_matching(tmp_path / "weights")


def test_sequences_longer_than_the_positions_are_refused_in_words():
    study = Study("test", ("q,k,v",), {"digits": 1}, init_from="lm-reviews")
    assert isinstance(study.model_of("digits").position, Learned)
    with pytest.raises(ValueError, match="whose sequences have 128 positions: it has 16"):
        study.experiments()


def carried_out(study, path):
    noted = Noted()
    run_study(study, Store(path), command="test", jobs=2, fail_fast=False, progress=noted)
    return noted


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_dependencies_run_first_and_once_and_are_stored_without_being_arms_of_the_study(tmp_path):
    # One seed of two tasks: an arm's start is the same for both.
    study = replace(STUDY, seeds={"recall": 1, "digits": 1})
    noted = carried_out(study, tmp_path / "store")
    assert noted.plans == [(6, 6)]
    assert [record.status for record in noted.endings] == ["done"] * 6
    assert [record.task for record in noted.endings][:2] == ["sort", "sort"]
    seen = view(Store(tmp_path / "store"))
    assert [task.name for task in seen.tasks] == ["recall", "digits"]
    assert [task.init_from for task in seen.tasks] == ["sort", "sort"]
    assert (len(seen.runs), seen.others) == (4, 0)
    assert "begin with the weights of their own runs on sort" in full.render(seen)

    assert carried_out(study, tmp_path / "store").plans == [(0, 4)]
    assert to_run(study.experiments(), Store(tmp_path / "store")) == []


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_a_study_that_was_stopped_resumes_and_trains_lost_weights_again(tmp_path):
    store = Store(tmp_path / "store")
    carried_out(replace(STUDY, seeds={"recall": 1}), tmp_path / "store")
    first = {record.id: record for record in store.runs().good}
    starts = {each.init_from for each in STUDY.experiments()}
    for start in starts:
        if (weights := kept_weights(start)) is not None:
            weights.unlink()
    (lost,) = (each for each in STUDY.experiments() if each.id in first and each.variant == "q,k=v")
    (tmp_path / "store" / "runs" / f"{lost.id}.json").unlink()
    again = carried_out(replace(STUDY, seeds={"recall": 1}), tmp_path / "store")
    # Its own start and no other: what is done needs none.
    assert [record.id for record in again.endings] == [lost.init_from.id, lost.id]
    assert again.endings[1].metrics == first[lost.id].metrics


@pytest.mark.usefixtures("server")
def test_a_failed_dependency_fails_only_the_runs_that_need_it_with_its_reason(tmp_path):
    class HalfWild(Study):
        def experiments(self):
            return tuple(
                replace(
                    each, init_from=replace(each.init_from, training=_wild(each.init_from.training))
                )
                if each.variant == "q,k=v"
                else each
                for each in super().experiments()
            )

    study = HalfWild("wild", STUDY.variants, {"recall": 1}, init_from="sort", smoke=True)
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


def test_a_single_run_with_a_failed_dependency_is_a_record_with_the_reason():
    wanted = begun()
    wild = replace(wanted.init_from, training=_wild(wanted.init_from.training))
    record = run_with_dependencies(replace(wanted, init_from=wild))
    assert record.status == "failed"
    assert "weights of sort, q,k=v, seed 0, whose run ended as diverged: At step" in record.reason


def test_run_trains_no_dependency_and_fails_with_the_name_of_the_missing_one():
    wanted = begun()
    record = run(wanted)
    assert record.status == "failed"
    assert f"weights of sort, q,k=v, seed 0 ({wanted.init_from.id})" in record.reason
    assert kept_weights(wanted.init_from) is None


def test_dependencies_come_first_each_once_and_in_phases_that_can_run_at_the_same_time():
    bottom = experiment(seed=3)
    middle = replace(experiment(seed=2), init_from=bottom)
    tops = [replace(begun(seed=seed), init_from=middle) for seed in (0, 1)]
    assert in_order(tops) == [bottom, middle, *tops]
    found = [(phase.experiments, phase.saves_weights) for phase in phases(in_order(tops))]
    assert found == [([bottom], True), ([middle], True), (tops, False)]


def test_a_chain_of_dependencies_is_trained_once_and_only_as_far_as_weights_are_missing():
    bottom = experiment(seed=3)
    middle = replace(experiment(seed=2), init_from=bottom)
    top = replace(begun(), init_from=middle)
    assert run_with_dependencies(top).status == "done"
    kept_weights(bottom).unlink()
    assert run_with_dependencies(top).status == "done"
    # Its weights are needed by nothing that must be trained.
    assert kept_weights(bottom) is None


def test_a_dry_run_counts_the_dependencies_and_runs_nothing(tmp_path, capsys):
    words = ["run", "--variants", "q,k,v", "q,k=v", "--tasks", "recall", "digits", "--seeds", "2"]
    words += ["--init-from", "sort", "--dry-run", "--out", str(tmp_path / "store")]
    assert answer(parse_request(words)) == 0
    said = capsys.readouterr().out
    assert "8 runs, of which 0 are done" in said
    assert "4 runs on sort come first; the weights of 0 are kept" in said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("start", "said"),
    [("sorted", "Did you mean sort"), ("lm-reviews", "whose sequences have 128 positions")],
)
def test_impossible_initial_weights_are_refused_before_anything_runs(tmp_path, start, said):
    words = ["run", "--variants", "q,k,v", "--tasks", "recall", "--init-from", start]
    with pytest.raises(RequestError, match=said):
        answer(parse_request([*words, "--out", str(tmp_path / "store")]))
    assert not (tmp_path / "store").exists()


def _wild(training):
    return replace(training, learning_rate=1e30, warmup=0)
