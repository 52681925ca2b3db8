"""Emoji as data: what one concept is, what is left out, and what a model is asked of."""

import numpy as np
import pytest

from qkvbench import tasks
from qkvbench.data.batch import IGNORE_INDEX
from qkvbench.data.emoji import REGIONS, SIDE, SKIN_TONES, concept, emoji, render
from qkvbench.tasks.kinds.emoji import TEST, VALIDATION, split_by_concept


@pytest.mark.parametrize(
    "forms",
    [
        "👨‍🌾 👩‍🌾 🧑‍🌾 🧑🏿‍🌾 👩🏻‍🌾",
        "🏃 🏃‍♀️ 🏃‍♂️ 🏃🏽‍♂️ 🏃‍♀️‍➡️",
        "👨 👩 🧑 👩‍🦰 👨🏾‍🦲 🧑🏼‍🦳",
        "🎅 🤶 🧑‍🎄 🤶🏿",
        "👫 👬 👭 🧑‍🤝‍🧑 👩🏻‍🤝‍👨🏿",
        "👪 👨‍👩‍👧 👩‍👦 🧑‍🧑‍🧒",
        "💏 👨‍❤️‍💋‍👨 👩🏽‍❤️‍💋‍👨🏿",
        "🤴 👸 🫅",
        "👦 👧 🧒",
        "👋 👋🏻 👋🏿",
    ],
)
def test_who_is_seen_makes_no_other_concept(forms):
    assert len({concept(form) for form in forms.split()}) == 1


def test_what_is_done_does():
    different = "👨‍🌾 👩‍🚒 🧑 🧒 🏃 🚶 👫 👪 💏 💑 🐶 😀 😃 ❤️ 💙 ⬆️ ➡️"
    assert len({concept(each) for each in different.split()}) == len(different.split())


def test_names_and_pictures_are_different_and_no_flag_or_skin_tone_is_among_them():
    found = emoji()
    assert len({image.tobytes() for image in found.pixels}) == len(found.pixels)
    assert len(set(found.english)) == len(set(found.german)) == len(found.pixels)
    assert len(found.english) == len(found.german) == len(found.concepts)
    assert (SKIN_TONES | REGIONS).isdisjoint("".join(found.concepts))
    assert not any("skin tone" in name or ":" in name or "_" in name for name in found.english)
    assert found.german[found.english.index("waffle")] == "waffel"


def test_no_concept_is_in_two_splits_and_one_picture_of_it_is_scored():
    found = emoji()
    parts = split_by_concept(found.concepts, found.english)
    concepts = {name: [found.concepts[n] for n in numbers] for name, numbers in parts.items()}
    assert set(concepts["train"]).isdisjoint(concepts["test"] + concepts["validation"])
    assert len({*concepts["test"], *concepts["validation"]}) == TEST + VALIDATION
    assert len(set().union(*concepts.values())) == len(set(found.concepts))


def test_a_drawing_is_rendered_on_white():
    square = '<rect x="4" y="0" width="4" height="4" fill="#ff0000"/>'
    pixels = render(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">{square}</svg>')
    half = SIDE // 2
    assert (pixels[:half, half:] == (255, 0, 0)).all()
    assert (pixels[half:] == 255).all()
    assert (pixels[:, :half] == 255).all()


@pytest.mark.parametrize("name", ["clip", "clip-de", "clip#bytes"])
def test_each_picture_belongs_to_the_name_beside_it_whatever_the_batch(name):
    split = tasks.find(name).load().test
    chosen = split.batch(np.array([7, 3]))
    assert chosen.targets.tolist() == [[0, 0], [1, 1]]
    one = split.batch(np.array([3]))
    np.testing.assert_array_equal(chosen.inputs[1], one.inputs[0])
    np.testing.assert_array_equal(chosen.second.inputs[1], one.second.inputs[0])
    assert chosen.second.lengths[1] == one.second.lengths[0]


def test_a_moved_picture_bares_white():
    task = tasks.find("clip")
    batch = task.load().train.batch(np.arange(64))
    white = type(batch)(np.ones_like(batch.inputs), batch.targets, second=batch.second)
    moved = task.augment(white, np.random.default_rng(0))
    np.testing.assert_array_equal(moved.inputs, white.inputs)


def test_no_name_is_cut_where_it_is_to_be_written():
    task = tasks.find("captioning")
    found = emoji()
    assert max(len(name.encode()) for name in found.english) < task.tokens
    targets = task.load().train.batch(np.arange(len(task.load().train))).targets
    assert ((targets == 0).sum(axis=1) == 1).all()
    assert (targets != IGNORE_INDEX).any()
