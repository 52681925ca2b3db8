"""The steps to a loss are read from the curves of records."""

import pytest
from time_to_loss import halfway, steps_to

from fake_study import experiments, record

(PLAIN,) = experiments("lm-reviews", ["q,k,v"], 1)


def run(*losses):
    """A run of 500 steps that was scored after each hundred."""
    made = record(PLAIN)
    points = [
        made.curve[0].model_copy(update={"step": 100 * n, "metrics": {"bits_per_byte": each}})
        for n, each in enumerate(losses, 1)
    ]
    return made.model_copy(update={"curve": points})


@pytest.mark.parametrize(
    ("loss", "step"),
    [(8.0, 100), (5.0, 100), (4.0, 150), (3.0, 200), (2.75, 350), (2.4, None)],
)
def test_the_step_is_on_the_line_between_two_evaluations(loss, step):
    # Between 200 and 300 steps the loss rises, which is no way down.
    assert steps_to(loss, run(5.0, 3.0, 3.0, 2.5, 2.6)) == step


def test_half_of_the_steps_is_the_next_evaluation():
    assert halfway([run(5.0, 4.0, 3.0, 2.0, 1.0), run(5.0, 4.0, 3.5, 2.0, 1.0)]) == 3.25
