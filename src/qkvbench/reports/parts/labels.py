"""Free places for the names of points, as close to them as possible."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Label:
    """A place for a name: a point at the middle of its height, at its start or its end."""

    x: float
    y: float
    anchor: str
    leader: bool


@dataclass(frozen=True)
class Font:
    """The size of a label's characters; they are all equally wide."""

    width: float
    height: float


def labels(
    names: Mapping[str, tuple[float, float]],
    texts: Mapping[str, str],
    bars: Sequence[tuple[float, float, float, float]],
    area: tuple[float, float, float, float],
    font: Font,
) -> dict[str, Label]:
    """A label for each point, in this order of preference; none if every place is taken."""
    radius = 0.45 * font.height
    points = np.array(list(names.values()), dtype=float).reshape(-1, 2)
    dots = np.hstack([points - radius, points + radius])
    lines = np.array(bars, dtype=float).reshape(-1, 4)
    taken = np.empty((0, 4))
    chosen: dict[str, Label] = {}
    for index, (name, (x, y)) in enumerate(names.items()):
        width = font.width * len(texts[name])
        steps, aways, sides = _OFFSETS.T
        ys = y + steps * font.height / 2
        near = x + sides * aways * font.height
        left = np.where(sides > 0, near, near - width)
        boxes = np.stack([left, ys - font.height / 2, left + width, ys + font.height / 2], axis=1)
        inside = (boxes[:, :2] >= area[:2]).all(1) & (boxes[:, 2:] <= area[2:]).all(1)
        free = inside & ~_overlaps(boxes, np.vstack([dots, taken])).any(1)
        if not free.any():
            continue
        cost = (
            np.abs(steps) / 2
            + 0.7 * (aways - aways.min())
            + 0.2 * (sides < 0)
            + 1.0 * _overlaps(boxes, lines).sum(1)
        )
        # Only the cheapest places are worth the question whether their leader crosses something.
        near_by = np.where(free, cost, np.inf).argsort()[: min(int(free.sum()), 12)]
        others = np.delete(dots, index, axis=0)
        others = others[~_overlaps(others, np.array([[x, y, x, y]], dtype=float))[:, 0]]
        ends = np.stack([near[near_by], ys[near_by]], axis=1)
        crossed = _crosses((x, y), ends, np.vstack([others, taken]))
        best = int(near_by[(cost[near_by] + 3.0 * crossed).argmin()])
        taken = np.vstack([taken, boxes[best]])
        chosen[name] = Label(
            float(near[best]),
            float(ys[best]),
            "start" if sides[best] > 0 else "end",
            leader=bool(abs(steps[best]) > 1 or aways[best] > aways.min()),
        )
    return chosen


# Half heights of a line up or down, distance in line heights, and the side: 1 is right.
_OFFSETS = np.array(
    [
        (step, away, side)
        for step in range(-14, 15)
        for away in (0.95, 1.8, 3.2, 4.8)
        for side in (1, -1)
    ]
)


def _overlaps(
    boxes: Float[np.ndarray, "boxes 4"], others: Float[np.ndarray, "others 4"]
) -> Bool[np.ndarray, "boxes others"]:
    """Whether boxes intersect; each has its left, top, right and bottom."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    # Shape (boxes, others, 2).
    common = low <= high
    return common[..., 0] & common[..., 1]


def _crosses(
    start: tuple[float, float],
    ends: Float[np.ndarray, "ends 2"],
    boxes: Float[np.ndarray, "boxes 4"],
) -> Bool[np.ndarray, " ends"]:
    """Whether the line from a point to each end crosses one of the boxes."""
    part = np.linspace(0, 1, 9)[:, None, None]
    # Shape (samples, ends, 2).
    samples = np.array(start) + part * (ends - np.array(start))
    within = (samples[:, :, None] > boxes[:, :2]) & (samples[:, :, None] < boxes[:, 2:])
    # Shape (samples, ends, boxes, 2).
    hits = within[..., 0] & within[..., 1]
    return hits.sum(axis=(0, 2)) > 0
