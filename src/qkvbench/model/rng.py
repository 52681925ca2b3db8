"""Random draws that depend on what they are for, never on the order in which they are made.

Each draw is keyed by (seed, purpose, name): arms of a study share the initial values of what they
share, and the order of the data, in every backend.
"""

from hashlib import sha256

import numpy as np


def generator(seed: int, purpose: str, name: str) -> np.random.Generator:
    """The random numbers of one purpose and name, such as ("start", "blocks.0.attention.q")."""
    key = sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))


def framework_seed(seed: int, purpose: str) -> int:
    """A seed for the random numbers that a framework draws itself, such as dropout masks."""
    return int(generator(seed, purpose, "framework").integers(2**31))
