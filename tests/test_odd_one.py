"""The odd one of ten images: what a set holds, and what a network makes of its images."""

import json
import math
import multiprocessing.forkserver as server
from dataclasses import replace

import numpy as np
import pytest

from qkvbench import tasks
from qkvbench.backends.torch import Learner
from qkvbench.cli.parser import parse_request
from qkvbench.cli.run import answer
from qkvbench.data.batch import Batch
from qkvbench.data.mnist import mnist_70k
from qkvbench.experiment import Experiment, Training, from_json, to_json
from qkvbench.recipes import Study
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.task_ref import TaskRef, parse_task
from qkvbench.tasks.kinds.odd_one_out import SET, SETS, Sets, members
from qkvbench.tasks.kinds.splits import unpatchify
from qkvbench.train import ensure_trained, run, run_with_dependencies
from qkvbench.train.artifacts import kept_weights
from qkvbench.train.extract_features import with_features
from test_sweep import carried_out

SHORT = Training(steps=3, batch=8, learning_rate=1e-2, warmup=1, evaluations=1, scored=16)
STUDY = Study("test", ("q,k,v", "q,k=v"), {"anomaly-features": 1}, smoke=True)


@pytest.fixture(name="splits", scope="module")
def _splits():
    """The sets of each split, and the class of each image of theirs."""
    data, images = tasks.find("anomaly-pixels").load(), mnist_70k()
    return {name: (getattr(data, name), images[name].labels) for name in SETS}


def test_nine_are_of_one_class_and_the_one_that_is_named_is_not(splits):
    for sets, labels in splits.values():
        of = labels[sets.members]
        named = np.take_along_axis(of, sets.targets, axis=1)
        others = of[np.arange(SET) != sets.targets].reshape(-1, SET - 1)
        assert (others == others[:, :1]).all()
        assert (named != others).all()


def test_no_image_is_twice_in_a_set_and_no_set_is_twice(splits):
    for sets, _ in splits.values():
        ordered = np.sort(sets.members, axis=1)
        assert (np.diff(ordered, axis=1) > 0).all()
        assert len(np.unique(ordered, axis=0)) == len(ordered) == len(sets)


def test_no_image_is_in_sets_of_two_splits(splits):
    train, validation, test = (
        {image.tobytes() for image in sets.vectors[np.unique(sets.members)]}
        for sets, _ in splits.values()
    )
    assert train.isdisjoint(validation)
    assert train.isdisjoint(test)
    assert validation.isdisjoint(test)


def test_neither_place_nor_class_tells_which_is_odd(splits):
    for sets, labels in splits.values():
        odd = labels[np.take_along_axis(sets.members, sets.targets, axis=1)]
        # A count of so many even throws: four deviations.
        mean = len(sets) / SET
        allowed = 4 * math.sqrt(mean * (1 - 1 / SET))
        for values in (sets.targets, odd):
            counts = np.bincount(values.ravel(), minlength=SET)
            assert abs(counts - mean).max() < allowed
    sets, _ = splits["train"]
    named = np.take_along_axis(sets.members, sets.targets, axis=1).ravel()
    others = sets.members[np.arange(SET) != sets.targets]
    # The same image is odd in one set and one of nine in another.
    assert len(set(named.tolist()) & set(others.tolist())) > len(set(named.tolist())) / 2


def test_a_vector_is_the_image_patch_by_patch(splits):
    sets, _ = splits["test"]
    batch = sets.batch(np.arange(5))
    whole = unpatchify(batch.inputs.reshape(-1, 16, 49), 7, 1).reshape(5, SET, 28, 28, 1)
    expected = mnist_70k()["test"].pixels[sets.members[:5]]
    np.testing.assert_allclose(127.5 * (whole + 1), expected, atol=1e-4)


def test_sets_are_drawn_from_few_images_too_and_differ():
    labels = np.repeat(np.arange(3), 11)
    numbers, places = members(labels, 50, np.random.default_rng(0))
    of = labels[numbers]
    assert all(
        (row != row[place]).sum() == SET - 1 for row, (place,) in zip(of, places, strict=True)
    )
    assert len({frozenset(row) for row in numbers.tolist()}) == 50


@pytest.mark.slow
def test_it_is_learned_from_pixels_in_few_steps_and_not_without_the_answers():
    task = tasks.find("anomaly-pixels")
    training = replace(task.training, steps=200, warmup=50, evaluations=1)
    learned = run(
        Experiment(task.model, TaskRef("anomaly-pixels"), task.version, training, seed=10)
    )
    assert learned.status == "done", learned.reason
    assert learned.metrics["accuracy"] > 0.5
    still = replace(training, learning_rate=0.0)
    other = run(Experiment(task.model, TaskRef("anomaly-pixels"), task.version, still, seed=10))
    assert other.metrics["accuracy"] < 0.4


# What follows is about inputs that are seen through the network of another experiment.


@pytest.fixture(name="own_cache")
def _own_cache(tmp_path, monkeypatch):
    """A cache in which nothing is kept yet but the data."""
    from qkvbench.data.cache import cache_folder

    for name in ("animals", "anomaly-pixels"):
        tasks.find(name).load()
    before, folder = cache_folder(), tmp_path / "cache"
    folder.mkdir()
    for part in before.iterdir():
        if part.name.startswith(("animals", "anomaly")):
            (folder / part.name).symlink_to(part)
    monkeypatch.setenv("QKVBENCH_CACHE", str(folder))
    server._forkserver._stop()
    yield folder
    server._forkserver._stop()


def experiment(**changed):
    task = tasks.find("anomaly-features")
    through = replace(task.feature_extractor, training=SHORT)
    base = Experiment(task.model, TaskRef("anomaly-features"), task.version, SHORT, seed=0)
    return replace(base, feature_extractor=through, **changed)


def looked(wanted, data):
    ensure_trained(wanted.feature_extractor)
    return with_features(data, wanted.feature_extractor)


def few(data):
    """The task with few images, so that a test looks at them in no time."""

    def part(sets):
        return Sets(sets.vectors[:40], sets.members[:12] % 40, sets.targets[:12])

    return replace(
        data, train=part(data.train), validation=part(data.validation), test=part(data.test)
    )


@pytest.mark.usefixtures("own_cache")
def test_an_image_is_what_the_network_s_head_would_read_of_it():
    wanted = experiment()
    data = few(tasks.find("anomaly-features").load())
    through = wanted.feature_extractor
    network = Learner(through)
    network.load_matching(ensure_trained(through))
    found = looked(wanted, data).test.batch(np.arange(3))
    pixels = data.test.batch(np.arange(3))
    patches = pixels.inputs.reshape(30, 16, 49)
    expected = network.features(Batch(patches, np.zeros((30, 1), np.int64)))
    np.testing.assert_array_equal(found.targets, pixels.targets)
    # The same sums, over other numbers of images at a time.
    np.testing.assert_allclose(found.inputs, expected.reshape(3, SET, 64), atol=1e-5)
    # They are those of the weights at the end, and not at the start.
    fresh = Learner(through).features(Batch(patches, np.zeros((30, 1), np.int64)))
    assert np.abs(fresh - expected).max() > 0.01


@pytest.mark.usefixtures("own_cache")
def test_features_are_cached_and_damaged_ones_are_extracted_again(own_cache):
    wanted, data = experiment(), few(tasks.find("anomaly-features").load())
    extractor = wanted.feature_extractor
    weights = ensure_trained(extractor)
    content = weights.read_bytes()
    first = with_features(data, extractor)
    weights.unlink()
    # Cached features need no weights.
    second = with_features(data, extractor)
    assert first.identity == second.identity != data.identity
    (folder,) = own_cache.glob("features-*[0-9a-f]")
    features = (folder / "test.npy").read_bytes()
    (folder / "test.npy").write_bytes(features[:-1])
    weights.write_bytes(content)
    assert with_features(data, extractor).identity == first.identity
    assert (folder / "test.npy").read_bytes() == features


def test_what_it_is_seen_through_is_part_of_what_an_experiment_is():
    wanted = experiment()
    other = replace(wanted, feature_extractor=replace(wanted.feature_extractor, seed=11))
    assert len({wanted.id, other.id, replace(wanted, feature_extractor=None).id}) == 3
    again = from_json(json.loads(json.dumps(to_json(wanted))))
    assert again == wanted
    assert again.id == wanted.id


def test_arms_and_seeds_are_seen_through_one_network_of_canonical_attention():
    full = replace(STUDY, smoke=False)
    through = {each.feature_extractor for each in full.experiments()}
    assert through == {tasks.find("anomaly-features").feature_extractor}
    assert {each.variant for each in through} == {"q,k,v"}
    assert [str(task) for task in full.tasks] == ["anomaly-features", "animals"]
    assert all(each.needed == (each.feature_extractor,) for each in full.experiments())


@pytest.mark.parametrize(
    ("name", "through", "said"),
    [
        ("anomaly-features", None, "give the experiment the task's own: feature_extractor="),
        (
            "anomaly-pixels",
            experiment().feature_extractor,
            "leave out the experiment's feature_extractor",
        ),
    ],
)
def test_a_run_that_cannot_be_seen_so_is_a_record_that_says_how_it_can(name, through, said):
    task = tasks.find(name)
    record = run(
        Experiment(task.model, parse_task(name), task.version, SHORT, 0, feature_extractor=through)
    )
    assert record.status == "failed"
    assert said in record.reason


@pytest.mark.slow
def test_a_study_runs_the_network_s_experiment_first_and_once(own_cache, tmp_path):
    noted = carried_out(STUDY, tmp_path / "store")
    assert noted.plans == [(3, 3)]
    assert [record.task for record in noted.endings] == ["animals"] + ["anomaly-features"] * 2
    assert {record.status for record in noted.endings} == {"done"}, noted.endings[-1].reason
    (through,) = {each.feature_extractor for each in STUDY.experiments()}
    assert kept_weights(through) is not None
    assert len(list(own_cache.glob("features-*.lock"))) == 1
    # All arms were seen as the same data, which are not those of the pixels.
    identities = {each.data_identity for each in noted.endings[1:]}
    assert len(identities) == 1
    assert identities != {tasks.find("anomaly-pixels").load().identity}
    shown = view(Store(tmp_path / "store"))
    assert [task.name for task in shown.tasks] == ["anomaly-features"]
    assert shown.others == 0
    # The same call again finds all of it done.
    assert carried_out(STUDY, tmp_path / "store").plans == [(0, 2)]


@pytest.mark.usefixtures("own_cache")
def test_where_the_network_does_not_come_to_its_end_the_runs_say_so():
    wild = replace(SHORT, learning_rate=1e30, warmup=0)
    wanted = experiment()
    record = run_with_dependencies(
        replace(wanted, feature_extractor=replace(wanted.feature_extractor, training=wild))
    )
    assert record.status == "failed"
    assert "weights of animals, q,k,v, seed 10, whose run ended as diverged" in record.reason


def test_a_dry_run_counts_the_network_s_experiment(own_cache, tmp_path, capsys):
    words = ["run", "--variants", "q,k,v", "q,k=v", "--tasks", "anomaly-features", "--seeds", "2"]
    assert answer(parse_request([*words, "--dry-run", "--out", str(tmp_path / "store")])) == 0
    said = capsys.readouterr().out
    assert "1 runs on animals come first; the weights of 0 are kept" in said
