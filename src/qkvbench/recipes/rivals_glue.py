"""What do a window, blocks and linear attention cost an encoder? Packaged tasks in place of GLUE.

Run       qkvbench run rivals-glue
Register  --preregister src/qkvbench/recipes/rivals-glue.toml, for the first run
Tune      qkvbench run rivals-glue --tune lr      a learning rate for each arm
Takes     about an hour and forty minutes on two cores, the tuning included; by `--dry-run`, from
          records of other arms. Run untuned (studies/rivals-glue)
Expect    sentences of praise and blame and news of 8 topics, at most 128 tokens, of which a window
          of 16 on both sides hides most; the first token sees all, as Longformer's does. The gated
          delta rule reads one way, so no encoder has it
"""

from qkvbench.recipes import CONTROLS, Study

# Less than a fourth of the longest texts at a time.
WINDOW = "+window16+global1"
BLOCKS = "+blocks8x4"
LINEAR = ("+elu", "+favor64")


def study() -> Study:
    """Each rival with its own K and V, and with one for both."""
    return Study(
        name="rivals-glue",
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
        seeds={"sentiment": 5, "topics-8": 5},
    )
