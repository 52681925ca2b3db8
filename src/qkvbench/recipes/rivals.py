"""What else could be saved? A window, blocks and linear attention beside the ties.

Run       qkvbench run rivals
Register  --preregister src/qkvbench/recipes/rivals.toml, for the first run
Tune      qkvbench run rivals --tune lr      a learning rate for each arm; the registered runs:
          --tasks lm-reviews --preregister src/qkvbench/recipes/rivals-tuned.toml
Then      qkvbench run rivals-longer, with three times the steps, and rivals-glue for encoders
Takes     about an hour on two cores; with the tuning four and a half (lm-reviews alone 50 minutes)
Reported  the article that this project began from quotes 3 to 5 times the speed for a window and
          10 times for Performer, at losses of 2 to 8%, without a length or a task
Expect    linear layers to lose most in recall, where each key must be told from each; published
          signs flip with the budget, so read both. In `mqar` the window hides nothing. Widths are
          as they are: gates add half a percent of parameters, a tie takes seven away
"""

from qkvbench.recipes import CONTROLS, Study

# Of keys near, and the first ones: arXiv:2309.17453 finds that a stream needs four.
WINDOW = "+window64+sinks4"
# Its own block, the one before, and of the others each fourth.
BLOCKS = "+blocks16x4"
# Features of a head of FAVOR+: a few times its width.
LINEAR = ("+elu", "+favor64", "+gateddelta")


def study() -> Study:
    """Each rival with its own K and V and with one for both, and one key/value head for all."""
    return Study(
        name="rivals",
        variants=(
            "q,k,v",
            "q,k=v",
            "q,k,v/1",
            *(
                f"{ties}{rival}"
                for rival in (WINDOW, BLOCKS, *LINEAR)
                for ties in ("q,k,v", "q,k=v")
            ),
            *CONTROLS,
        ),
        seeds={"lm-reviews": 5, "long-plays": 5, "mqar": 5},
    )
