"""A variant is a value; `resolve` gives it a size and yields the plan that all else reads."""

from qkvbench.variant.notation import parse, write
from qkvbench.variant.plan import (
    Geometry,
    Kept,
    Op,
    Path,
    Plan,
    Root,
    Rotate,
    Turn,
    resolve,
    sized,
)
from qkvbench.variant.spec import (
    CANONICAL,
    ROLES,
    Own,
    Role,
    Rotated,
    Same,
    Source,
    Stream,
    Variant,
    every_variant,
    without_value_rotation,
)

__all__ = [
    "CANONICAL",
    "ROLES",
    "Geometry",
    "Kept",
    "Op",
    "Own",
    "Path",
    "Plan",
    "Role",
    "Root",
    "Rotate",
    "Rotated",
    "Same",
    "Source",
    "Stream",
    "Turn",
    "Variant",
    "every_variant",
    "parse",
    "resolve",
    "sized",
    "without_value_rotation",
    "write",
]
