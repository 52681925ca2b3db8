"""Images: what is in them, and what is drawn anew of them."""

from functools import partial

import numpy as np
import pytest

from qkvbench import tasks
from qkvbench.cli.parser import RequestError, parse_request
from qkvbench.cli.run import check_buildable, requested_study
from qkvbench.data.animals import KINDS, animals
from qkvbench.data.batch import Predictions
from qkvbench.model import Encoder, Vectors
from qkvbench.tasks.kinds.augment import BLACK, flip, shift
from qkvbench.tasks.kinds.splits import PatchedImages, patchify, unpatchify

SIDE, CHANNELS = 12, 3
WITH_PICTURES = ["animals", "mnist-5k", "mnist-70k"]
every_redrawn = pytest.mark.parametrize("name", WITH_PICTURES)


@pytest.fixture(name="images")
def _images():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (40, SIDE, SIDE, CHANNELS)).astype(np.float32)


def moved(image, down, right):
    """The image moved by hand; what is bared is black."""
    found = np.full_like(image, BLACK)
    for row in range(len(image)):
        for column in range(len(image)):
            if 0 <= row - down < len(image) and 0 <= column - right < len(image):
                found[row, column] = image[row - down, column - right]
    return found


def moves(image, pixels):
    """The image at every place that a shift by so many pixels may give it."""
    span = range(-pixels, pixels + 1)
    return {(down, right): moved(image, down, right) for down in span for right in span}


def found_in(image, ways):
    return [way for way, each in ways.items() if np.array_equal(image, each)]


@pytest.mark.parametrize("patch", [1, 2, 3, 4, 6, 12])
def test_an_image_is_whole_again_from_its_patches(images, patch):
    cut = patchify(images, patch)
    assert cut.shape == (40, (SIDE // patch) ** 2, patch**2 * CHANNELS)
    np.testing.assert_array_equal(unpatchify(cut, patch, CHANNELS), images)


def test_a_shift_moves_each_image_by_its_own_few_pixels_and_bares_black(images):
    found = shift(images, np.random.default_rng(1), 2)
    ways = [found_in(one, moves(image, 2)) for one, image in zip(found, images, strict=True)]
    assert all(len(way) == 1 for way in ways)
    # Forty draws of twenty-five places: most are different, in both directions and by both sizes.
    down, right = zip(*(way[0] for way in ways), strict=True)
    assert set(down) == set(right) == {-2, -1, 0, 1, 2}
    assert len({way[0] for way in ways}) > 15


def test_about_every_second_image_is_mirrored_and_none_upside_down(images):
    found = flip(images, np.random.default_rng(1))
    turned = [np.array_equal(one, image[:, ::-1]) for one, image in zip(found, images, strict=True)]
    same = [np.array_equal(one, image) for one, image in zip(found, images, strict=True)]
    assert all(one != other for one, other in zip(turned, same, strict=True))
    # Forty throws of a coin: four deviations are 12.6.
    assert 8 <= sum(turned) <= 32


@every_redrawn
def test_a_training_image_is_moved_by_one_pixel_and_only_animals_are_mirrored(name):
    task = tasks.find(name)
    split = task.load().train
    assert isinstance(split, PatchedImages)
    batch = split.batch(np.arange(24))
    again = task.augment(batch, np.random.default_rng(2))
    whole = partial(unpatchify, patch=split.patch, channels=1)
    looks = set()
    for one, image in zip(whole(again.inputs), whole(batch.inputs), strict=True):
        ways = {"as it was": moves(image, 1), "mirrored": moves(image[:, ::-1], 1)}
        looks.add(next(look for look, each in ways.items() if found_in(one, each)))
    assert looks == ({"as it was", "mirrored"} if name == "animals" else {"as it was"})


def test_what_is_scored_is_never_redrawn():
    task = tasks.find("animals")
    data = task.load()
    for split in (data.validation, data.test):
        some = np.arange(7)
        pixels = unpatchify(split.batch(some).inputs, 7, 1)
        np.testing.assert_allclose(127.5 * (pixels + 1), split.pixels[some], atol=1e-4)


def test_animals_are_9716_different_pictures_of_ten_kinds():
    found = animals()
    assert found.pixels.shape == (9716, 28, 28, 1)
    assert len({image.tobytes() for image in found.pixels}) == 9716
    assert np.bincount(found.labels).tolist() == [
        937, 812, 992, 996, 997, 1000, 1000, 997, 985, 1000
    ]  # fmt: skip
    assert len(KINDS) == 10


def test_zebras_alone_have_a_texture():
    found = animals()
    grey = ((found.pixels > 30) & (found.pixels < 225)).mean(axis=(1, 2, 3))
    shares = [grey[found.labels == kind].mean() for kind in range(len(KINDS))]
    # Of the others only the rims of their outlines are neither black nor white.
    assert shares[KINDS.index("zebra")] > 2 * max(shares[:-1])


@pytest.mark.parametrize("name", WITH_PICTURES)
def test_every_class_is_in_every_split(name):
    data = tasks.find(name).load()
    for split in (data.train, data.validation, data.test):
        assert set(split.targets.ravel().tolist()) == set(range(10))


@pytest.mark.parametrize("name", WITH_PICTURES)
def test_the_right_class_is_among_the_five_likeliest_where_its_rank_says_so(name):
    ranks = np.arange(10)[:, None]
    outcome = Predictions(np.ones((10, 1)), (ranks > 0).astype(int), np.zeros((10, 1), int), ranks)
    found = tasks.find(name).score(outcome)
    assert found["accuracy"] == pytest.approx(0.1)
    assert found["top_5"] == pytest.approx(0.5)


def run_words(*words):
    return parse_request(["run", "--variants", "q,k,v", "--seeds", "1", *words])


def test_a_person_chooses_how_the_whole_is_told():
    words = ["--tasks", "mnist-5k", "animals"]
    plain, chosen, back = (
        {str(each.task): each for each in requested_study(run_words(*words, *more)).experiments()}
        for more in ([], ["--pooling", "class-token"], ["--pooling", "mean"])
    )
    told = [
        {name: each.model.architecture.pooling for name, each in study.items()}
        for study in (plain, chosen, back)
    ]
    assert told == [
        {"mnist-5k": "mean", "animals": "class token"},
        {"mnist-5k": "class token", "animals": "class token"},
        {"mnist-5k": "mean", "animals": "mean"},
    ]
    # It is another experiment; where it is what the task does anyway, it is the same.
    assert chosen["mnist-5k"].id != plain["mnist-5k"].id == back["mnist-5k"].id
    assert chosen["animals"].id == plain["animals"].id != back["animals"].id


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "mnist-5k", "--pooling", "max"], "no pooling 'max'"),
        (["--tasks", "sort", "--pooling", "mean"], "'sort' has no pooling"),
    ],
)
def test_a_pooling_that_cannot_be_is_refused_in_words(words, said):
    with pytest.raises(RequestError, match=said):
        check_buildable(requested_study(run_words(*words)))


@pytest.mark.parametrize("predicts", ["each position", "which position"])
def test_a_class_token_that_nothing_reads_is_refused_in_words(predicts):
    with pytest.raises(ValueError, match=f"here {predicts} is predicted; leave pooling at"):
        Encoder(Vectors(4), 10, predicts, pooling="class token")
