"""Native CPU kernels for decoding, which is limited by memory bandwidth.

`Decoding` reads each cached row once, although it may be key and value; `linear` reads each weight
once for all rows of a step. The library is optional: `missing_requirement` says why it cannot run.
"""

from qkvbench.native.decode import (
    CAPABILITIES,
    KINDS,
    Capabilities,
    Decoding,
    Kind,
    PagedRows,
    RopeTable,
)
from qkvbench.native.library import (
    UnavailableError,
    missing_requirement,
    select_isa,
    supported_isas,
)
from qkvbench.native.linear import MAX_ROWS, WEIGHT_KINDS, linear

__all__ = [
    "CAPABILITIES",
    "KINDS",
    "MAX_ROWS",
    "WEIGHT_KINDS",
    "Capabilities",
    "Decoding",
    "Kind",
    "PagedRows",
    "RopeTable",
    "UnavailableError",
    "linear",
    "missing_requirement",
    "select_isa",
    "supported_isas",
]
