"""The variants with a name. To add one, add an entry: nothing else needs an edit."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from qkvbench.variant import NotationError, parse, write
from qkvbench.variant.spec import Variant


@dataclass(frozen=True)
class Entry:
    """A named variant, with its origin or the hypothesis that it tests.

    ``origin`` is a citation (arXiv:id, section) or a stated hypothesis. ``aliases`` are accepted
    for ``name``.
    """

    name: str
    equation: str
    about: str
    origin: str
    aliases: tuple[str, ...] = ()

    @property
    def variant(self) -> Variant:
        """The value that the equation writes."""
        return parse(self.equation)


STUDY = "arXiv:2606.04032"

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "canonical",
        "q,k,v",
        "three projections of their own",
        "arXiv:1706.03762, section 3.2",
        aliases=("mha",),
    ),
    Entry(
        "shared-qk",
        "q=k,v",
        "no key projection: the query is used as key",
        STUDY,
        aliases=("no-key",),
    ),
    Entry("shared-kv", "q,k=v", "the key is used as value", STUDY),
    Entry(
        "shared-qv",
        "q=v,k",
        "the query is used as value",
        "hypothesis: the tie that the study leaves out; it halves no cache and should cost "
        "like q=k,v",
    ),
    Entry("shared-qkv", "q=k=v", "one projection for all three", STUDY),
    Entry(
        "shared-rotated",
        "q,k=R(q),v=R(q)",
        "one projection; key and value are learned rotations of it",
        "hypothesis: a rotation per head gives back what a single projection loses",
        aliases=("shared",),
    ),
    Entry(
        "value-only",
        "q=k=x,v",
        "query and key are the stream itself",
        "hypothesis: scores need no learned projection when the stream is normed",
    ),
    Entry(
        "identity-query",
        "q=x,k,v",
        "the query is the stream itself",
        "arXiv:2404.12362: without skip connections its neighbours absorb the query projection",
        aliases=("no-query",),
    ),
    Entry(
        "identity-key",
        "q,k=x,v",
        "the key is the stream itself",
        "hypothesis: q·W_q·W_kᵀ·x has one matrix too many when each head may choose its own q",
    ),
    Entry(
        "identity-value",
        "q,k,v=x",
        "the value is the stream itself",
        "arXiv:2311.01906: value and output projections can be the identity",
        aliases=("no-value",),
    ),
    Entry(
        "no-projections",
        "q=k=v=x",
        "no matrix before attention; only the output projection is left",
        "hypothesis: the floor that any learned projection must beat",
    ),
    Entry(
        "shared-qk-2d",
        "q=k,v+2d",
        "shared-qk, and scores that know the row and the column of each pair",
        f"{STUDY}, written (Q=K-V)+ there",
    ),
    Entry(
        "gqa-2", "q,k,v/2", "two key/value heads for all query heads", "arXiv:2305.13245, section 2"
    ),
    Entry(
        "mqa", "q,k,v/1", "one key/value head for all query heads", "arXiv:1911.02150, section 3"
    ),
    Entry("shared-kv-mqa", "q,k=v/1", "one head that is both key and value", STUDY),
    Entry(
        "uniform",
        "q=k=0,v",
        "a control: the mean of what is visible, so that nothing can be looked for",
        "arXiv:2011.04006, the floor of any task that needs attention to choose",
    ),
    Entry(
        "none",
        "none",
        "a control: no attention sub-layer at all, so that no token sees another",
        "hypothesis: what a model without attention reaches needs no attention",
    ),
    Entry(
        "latent",
        "q,k=L(16),v=L(16)",
        "key and value are made from one latent of 16 numbers",
        "arXiv:2405.04434, section 2.1, without its second key for rotary positions",
    ),
    Entry(
        "null-kv",
        "q,k,v=R(k)",
        "the same function class as q,k=v, with more parameters",
        "hypothesis: differs from q,k=v by nothing but the optimizer's path",
    ),
)


# Names of families in papers and libraries, each with one variant of it. Most need a number.
FAMILIES = {
    "gqa": "q,k,v/2",
    "mla": "q,k=L(16),v=L(16)+latentnorm+ropehead12",
    "swa": "q,k,v+window64",
    "sliding-window": "q,k,v+window64",
    "streaming-llm": "q,k,v+window64+sinks4",
    "longformer": "q,k,v+window64+global1",
    "block-sparse": "q,k,v+blocks16x4",
    "linear": "q,k,v+elu",
    "performer": "q,k,v+favor64",
    "gated-deltanet": "q,k,v+gateddelta",
    "cla": "q,k=K(-1),v=V(-1)",
}


def named(text: str) -> Variant:
    """The variant of a catalogue name, an alias or an equation; ValueError if it is none."""
    entries = {name: entry for entry in CATALOGUE for name in (entry.name, *entry.aliases)}
    key = text.strip().lower()
    if key in entries:
        return entries[key].variant
    try:
        return parse(text)
    except NotationError:
        raise
    except ValueError as error:
        if key in FAMILIES:
            raise ValueError(
                f"'{key}' is written as an equation, such as '{FAMILIES[key]}'."
            ) from None
        equations = [entry.equation for entry in CATALOGUE]
        near = equations_spelled(key, equations) or get_close_matches(
            key, [*entries, *equations], n=1
        )
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"{error}{hint}") from None


def equations_spelled(letters: str, equations: Iterable[str]) -> list[str]:
    """The equations that have these letters and digits alone, such as `q,k,v` of "qkv"."""
    return [each for each in equations if "".join(filter(str.isalnum, each)) == letters]


def name_of(variant: Variant) -> str | None:
    """The catalogue's name of `variant`; None if it has none."""
    return next((entry.name for entry in CATALOGUE if entry.equation == write(variant)), None)
