"""What should a token of the cache keep? Forms of attention at 1, 1/2, 1/4 and 1/8 of the bytes.

Run       qkvbench run frontier
Size      --size 700k, 1.2m, 2.7m, 125m, 300m, 1.3b: docs/frontier.md has the order
Register  --preregister src/qkvbench/recipes/frontier.toml, for the first run
Tune      qkvbench run frontier --tune lr     a learning rate for each arm
Then      qkvbench run frontier-short, with a quarter of the steps
Takes     not run yet; at the usual size about 36 core-hours, computed from its operations at the
          rate that `q,k,v` has on lm-reviews in studies/
Reported  no study compares these at equal bytes, tuned, with seeds and intervals; the nearest has
          ten arms at 2.9B parameters and one seed
Expect    frontier.toml, written before the first run
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from qkvbench import tasks
from qkvbench.cost import parameters
from qkvbench.experiment import Precision
from qkvbench.model import Decoder, Init, Model, Rotary
from qkvbench.model.presets import transformer
from qkvbench.recipes import CONTROLS, Study

# Bytes of text, or tokens at the sizes that read byte pairs, for each parameter of the baseline.
PER_PARAMETER = 20
QUANTIZATIONS = ("int8", "int4")


@dataclass(frozen=True)
class Size:
    """A decoder with rotary positions, and the tasks that it is compared on.

    ``window`` is an eighth of ``context``, the length at which shares of bytes are stated. With
    ``every_arm`` all are trained, else those of `core` alone.
    """

    layers: int
    heads: int
    head_dim: int
    seeds: Mapping[str, int]
    context: int = 256
    precision: Precision = "fp32"
    micro_batches: int = 1
    every_arm: bool = True

    @property
    def window(self) -> int:
        """Positions that a layer with a window sees."""
        return self.context // 8


# Tasks whose steps follow the number of parameters.
LANGUAGE = ("lm-reviews@256", "lm-reviews@1024", "lm-docs@256", "lm-docs@1024")
# The other text and the longer context by `--tasks`: each takes as long again, or twice as long.
_TEXT = {"lm-reviews@256": 3}
_WEB = {"lm-fineweb-edu-10bt": 3}
# The number of layers is even and a multiple of three: some arms share K and V of two or three.
_SIZES = {
    "330k": Size(6, 8, 8, _TEXT | {"long-plays": 3, "recall": 5}),
    "700k": Size(6, 8, 12, _TEXT, every_arm=False),
    "1.2m": Size(6, 8, 16, _TEXT, every_arm=False),
    "2.7m": Size(6, 8, 24, _TEXT, every_arm=False),
    "125m": Size(12, 8, 96, _WEB, 2048, "bf16", 16),
    "300m": Size(18, 16, 64, _WEB, 2048, "bf16", 32),
    "1.3b": Size(24, 16, 128, _WEB, 2048, "bf16", 64),
}
SIZES = tuple(_SIZES)


def study(size: str = SIZES[0], budget: float = 1.0) -> Study:
    """The arms and controls at a size, trained on `budget` times 20 bytes for each parameter."""
    found = _SIZES[size]
    arms = (*shares(size), *matched(size)) if found.every_arm else core(size)
    return Study(
        name="frontier" if size == SIZES[0] else f"frontier-{size}",
        variants=(*arms, *CONTROLS),
        seeds=found.seeds,
        model=model(size),
        precision=found.precision,
        micro_batches=found.micro_batches,
        budget={task: budget * _budget(size, task) for task in (*LANGUAGE, *found.seeds)},
        quantizations=QUANTIZATIONS,
    )


def core(size: str) -> tuple[str, ...]:
    """The baseline, and at each share of bytes fewer heads, a tie and a latent: no other form."""
    heads = _SIZES[size].heads
    own = [f"q,k,v/{heads // level}" for level in (2, 4, 8)]
    ties = [f"q,k=v{_heads(2 * heads // level, heads)}" for level in (2, 4, 8)]
    latents = [arm for arm in shares(size) if arm.startswith("q,k=L(")]
    return ("q,k,v", *own, *ties, *latents)


def model(size: str) -> Model:
    """The decoder of a size; a task keeps its own vocabulary and initial values."""
    found = _SIZES[size]
    return transformer(
        f"frontier-{size}",
        Decoder(vocabulary=256),
        layers=found.layers,
        d_model=found.heads * found.head_dim,
        heads=found.heads,
        position=Rotary(),
        init=Init(embedding_std=0.5, position_std=0.5),
    )


def shares(size: str) -> dict[str, Fraction]:
    """The arms, each with its share of the bytes that `q,k,v` keeps at the size's context."""
    found = _SIZES[size]
    heads, width = found.heads, found.head_dim
    arms = {"q,k,v": Fraction(1)}
    for level in (2, 4, 8):
        # Heads of a tie, which has one row where the others have two.
        tied = _heads(2 * heads // level, heads)
        rope = width // 2
        latent = 2 * heads * width // level - rope
        pairs = f"q,k,v{_heads(2 * heads // level, heads)};q,k=K(-1),v=V(-1)"
        here = [
            f"q,k,v{_heads(heads // level, heads)}",
            f"q,k=v{tied}",
            f"q,k=v{tied}+rootnorm",
            # RoPE on V, too, and its inverse on the output.
            f"q,k=v{tied}+ropevalue",
            f"q,k=L({latent}),v=L({latent})+latentnorm+ropehead{rope}",
            pairs,
        ]
        if level > 2:
            # The core of DeepSeek V4 with as many heads as the bytes allow; its own has one.
            core = "+rootnorm+latentnorm+ropevalue+sinklogit"
            here.append(f"q=L({heads * width // 2}),k=v{tied}{core}")
        arms |= dict.fromkeys(here, Fraction(1, level))
    return arms | _between(size)


def _between(size: str) -> dict[str, Fraction]:
    """Arms whose form allows no share of these, with the one that they have."""
    found = _SIZES[size]
    heads, width, half = found.heads, found.head_dim, found.head_dim // 2
    local = Fraction(found.window, found.context)
    layer_below = "q,k=K(-1),v=V(-1)"
    arms = {
        f"q,k,v;{layer_below};q,k=K(-2),v=V(-2)": Fraction(1, 3),
        f"q,k,v;q,k,v+window{found.window}": (1 + local) / 2,
        f"q,k,v;q,k,v+window{found.window};q,k,v+window{found.window}": (1 + 2 * local) / 3,
        "q,k,v/1": Fraction(1, heads),
        "q,k=v/1": Fraction(1, 2 * heads),
    }
    for groups in (heads, heads // 2, heads // 4):
        shared = _heads(groups, heads)
        # arXiv:2505.21487: half of K is V's first half, the other half one head with RoPE.
        gta = Fraction(groups * width + half, 2 * heads * width)
        arms[f"q,k=v{shared}+keydim{half}+ropehead{half}"] = gta
    for groups in (heads, heads // 2):
        # About a quarter of a head, and even, as RoPE needs.
        thin = 2 * (width // 8)
        share = Fraction(groups * (thin + width), 2 * heads * width)
        arms[f"q,k,v{_heads(groups, heads)}+keydim{thin}"] = share
    return arms


def matched(size: str) -> tuple[str, ...]:
    """Ties and shared heads with as many parameters as `q,k,v`, by a wider feed-forward."""
    heads = _SIZES[size].heads
    arms = (f"q,k,v/{heads // 2}", "q,k=v", f"q,k,v/{heads // 4}", f"q,k=v/{heads // 2}")
    return tuple(f"{arm}~q,k,v" for arm in arms)


def _heads(groups: int, heads: int) -> str:
    """How so many key/value heads are written: not at all, if all heads have their own."""
    return "" if groups == heads else f"/{groups}"


def _budget(size: str, name: str) -> float:
    """The factor on a task's own steps; 1 for a task that is no text."""
    if name not in LANGUAGE and name not in _WEB:
        return 1.0
    task = tasks.find(name)
    # The baseline with the task's own inputs and outputs.
    baseline = Study("baseline", ("q,k,v",), {name: 1}, model=model(size)).model_of(name)
    read = task.training.steps * task.training.batch * task.tokens
    return PER_PARAMETER * parameters(baseline).total / read
