"""Real data from outside: fetched into a cache folder once, pinned, checked, and kept prepared."""

from qkvbench.data.cache import DataRefusedError, DataUnavailableError
from qkvbench.data.reviews import REVIEWS, Reviews, reviews
from qkvbench.data.wheel import Wheel, open_wheel

__all__ = [
    "REVIEWS",
    "DataRefusedError",
    "DataUnavailableError",
    "Reviews",
    "Wheel",
    "open_wheel",
    "reviews",
]
