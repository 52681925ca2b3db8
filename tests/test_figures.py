"""Figures show every arm, within their frames, and no label hides another."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

import fake_study
from qkvbench.reports.parts import curves, labels, picture
from qkvbench.reports.parts import findings as findings
from qkvbench.results.view import view


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fake_study.build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(store):
    return view(store)


def test_figures_are_well_formed_and_curves_name_every_arm_once(study):
    for task in study.tasks:
        drawn = ElementTree.fromstring(str(curves.curves(task)))
        texts = [
            text.text for text in drawn.iter("text") if "label" in text.get("class", "").split()
        ]
        assert sorted(texts) == sorted(fake_study.ARMS)


@pytest.mark.parametrize("size", [picture.WIDE, picture.PHONE, picture.COLUMN, picture.PAGE])
def test_a_picture_has_every_arm_that_has_a_score_and_lies_within_its_frame(study, size):
    for task in study.tasks:
        made = picture.picture(study, task, "parameters", size)
        assert [mark.point.arm for mark in made.marks] == list(fake_study.ARMS)
        assert ElementTree.fromstring(str(picture.svg(made))) is not None
        for mark in made.marks:
            assert made.left < mark.x < made.right
            assert made.top - 1 < mark.y < made.bottom + 1


def test_the_numbers_of_a_picture_are_those_of_its_drawing(study):
    made = picture.picture(study, study.tasks[3], "cache", picture.WIDE)
    told = picture.numbers(made)
    root = ElementTree.fromstring(str(picture.svg(made)))
    groups = list(root.iter("g"))
    assert len(groups) == len(told["marks"])
    for group, (order, kind, x, y, *_) in zip(groups, told["marks"], strict=True):
        assert group.get("class") == f"mark {kind}"
        assert int(group.get("data-arm")) == order
        place = [float(each) for each in re.findall(r"[\d.]+", group.get("transform"))]
        assert place == pytest.approx([x, y], abs=0.31)


def test_the_marks_on_the_frontier_are_those_of_the_findings(study):
    for task in study.tasks:
        for front in task.fronts:
            made = picture.picture(study, task, front.cost, picture.WIDE)
            drawn = {mark.point.arm for mark in made.marks if " front" in mark.kind}
            assert drawn == {
                arm for arm, each in front.places.items() if each.outlook == "on the frontier"
            }


def test_an_arm_that_caches_nothing_has_a_place_on_the_axis(tmp_path):
    arms = ("q,k,v", "q,k=v", "none")
    records = [
        fake_study.record(run, 2.4 + 0.1 * arms.index(run.arm) + 0.001 * run.seed)
        for run in fake_study.experiments("lm-reviews", arms)
    ]
    study = fake_study.small(tmp_path, records, arms, ("lm-reviews",), cost_task="lm-reviews")
    made = picture.picture(study, study.tasks[0], "cache", picture.WIDE)
    places = {mark.point.arm: mark.x for mark in made.marks}
    assert places["none"] < places["q,k=v"] < places["q,k,v"]
    assert "0 B" in [text for _, text in made.x_ticks]


@pytest.mark.parametrize("arms", [8, 15, 40])
def test_no_label_hides_another(arms):
    rng = np.random.default_rng(arms)
    names = [f"q,k=R(q),v={index:04d}" for index in range(arms)]
    places = {
        name: (60 + 480 * x, 40 + 240 * y)
        for name, x, y in zip(names, *rng.random((2, arms)).tolist(), strict=True)
    }
    font = labels.Font(6.3, 13.0)
    placed = labels.labels(places, {name: name for name in names}, [], (0, 0, 560, 350), font)
    assert len(placed) >= min(arms, 15)
    boxes = []
    for name, label in placed.items():
        width = font.width * len(name)
        left = label.x if label.anchor == "start" else label.x - width
        assert left >= 0
        assert left + width <= 560
        boxes.append((left, label.y - 6, left + width, label.y + 6))
    assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def overlap(one, other):
    return all(one[i] < other[i + 2] and other[i] < one[i + 2] for i in (0, 1))


def test_labels_beside_curves_are_apart_and_in_order():
    moved = curves._spread({0: 100.0, 1: 100.5, 2: 99.0, 3: 300.0})
    ordered = sorted(moved, key=lambda order: moved[order])
    assert ordered == [2, 0, 1, 3]
    gaps = np.diff([moved[order] for order in ordered])
    assert (gaps >= curves.LABEL_HEIGHT - 1e-9).all()
