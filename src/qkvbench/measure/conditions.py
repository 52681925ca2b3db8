"""The conditions that all arms of a measurement share, and the identity of a result."""

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

from pydantic import TypeAdapter

from qkvbench.cost import CacheDtype
from qkvbench.experiment import Precision, first_names
from qkvbench.model import Model


@dataclass(frozen=True)
class Conditions:
    """The conditions that are equal for all arms of a measurement.

    A decode step attends over `context` cached tokens of each of `batch` sequences; a prefill or a
    forward pass reads as many. `seconds` is how long a study times decoding. `cache` is the data
    type of cached rows; None is the precision's own.
    """

    backend: str = "torch"
    precision: Precision = "fp32"
    threads: int = 1
    context: int = 4096
    batch: int = 4
    seconds: float = 20.0
    cache: CacheDtype | None = None


# Fields with a default that a model had when the first measurements were stored. Later fields are
# part of an identity only if they are not at their defaults.
NAMED_AT_DEFAULT = frozenset({"base", "eps", "kind", "matrix", "norm", "rotation", "tied"})


def identity(model: Model, conditions: Conditions) -> str:
    """Sixteen hexadecimal digits that name a measurement in a store.

    A new field with a default does not change the identity of earlier measurements.
    """
    adapter = TypeAdapter(Model)
    # As in the first version, a size match is part of the name.
    model = replace(model, name=model.label, size_match=None)
    spec = _as_named(
        first_names(adapter.dump_python(model, mode="json"), "Model"),
        first_names(adapter.dump_python(model, mode="json", exclude_defaults=True), "Model"),
    )
    changed = {name: value for name, value in asdict(conditions).items() if value is not None}
    text = json.dumps([spec, changed], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]


def _as_named(whole: Any, changed: Any) -> Any:
    """The whole value without later fields that are at their defaults."""
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
