"""What all arms of a measurement have in common, and the name it gives to a result."""

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

from pydantic import TypeAdapter

from qkvbench.cost import CacheDtype
from qkvbench.experiment import Precision, with_first_names
from qkvbench.model import Model


@dataclass(frozen=True)
class Conditions:
    """The same for every arm of a measurement.

    A decode step attends over `context` cached tokens of each of `batch` sequences; a prefill or a
    forward pass reads as many. `seconds` is how long a study times decoding. `cache` is the type of
    cached rows; None is the precision's own.
    """

    backend: str = "torch"
    precision: Precision = "fp32"
    threads: int = 1
    context: int = 4096
    batch: int = 4
    seconds: float = 20.0
    cache: CacheDtype | None = None


# The fields with a default that a model had when the first measurements were named: all others
# stand in an identity only where they are not at their defaults.
NAMED_AT_DEFAULT = frozenset({"base", "eps", "kind", "matrix", "norm", "rotation", "tied"})


def identity(model: Model, conditions: Conditions) -> str:
    """Sixteen hexadecimal digits that name a measurement in a store.

    A new field of a model with a default keeps the names of what was measured before it.
    """
    adapter = TypeAdapter(Model)
    # As in the first version, a size match is part of the name.
    model = replace(model, name=model.label, size_match=None)
    spec = _as_named(
        with_first_names(adapter.dump_python(model, mode="json"), "Model"),
        with_first_names(adapter.dump_python(model, mode="json", exclude_defaults=True), "Model"),
    )
    said = {name: value for name, value in asdict(conditions).items() if value is not None}
    text = json.dumps([spec, said], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]


def _as_named(whole: Any, changed: Any) -> Any:
    """The whole value without the later fields that are at their defaults."""
    match whole, changed:
        case dict(), dict():
            return {
                key: _as_named(value, changed.get(key, value))
                for key, value in whole.items()
                if key in changed or key in NAMED_AT_DEFAULT
            }
        case list(), list():
            return [_as_named(*pair) for pair in zip(whole, changed, strict=True)]
        case _:
            return whole
