"""What all arms of a measurement have in common, and the name it gives to a result."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256

from pydantic import TypeAdapter

from qkvbench.experiment import Precision
from qkvbench.model import Model


@dataclass(frozen=True)
class Conditions:
    """The same for every arm of a measurement.

    A decode step attends over `context` cached tokens of each of `batch` sequences; a prefill or a
    forward pass reads as many. `seconds` is how long a study times decoding.
    """

    backend: str = "torch"
    precision: Precision = "fp32"
    threads: int = 1
    context: int = 4096
    batch: int = 4
    seconds: float = 20.0


def identity(model: Model, conditions: Conditions) -> str:
    """Sixteen hexadecimal digits that name a measurement in a store.

    A new field of either would orphan what was measured before: leave it out here at its default.
    """
    spec = TypeAdapter(Model).dump_python(model, mode="json")
    text = json.dumps([spec, asdict(conditions)], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]
