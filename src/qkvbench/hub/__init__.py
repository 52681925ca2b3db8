"""Pretrained checkpoints: loaded without running what they bring, with caches of half the size.

Names are found on first use, so that importing this package does not import transformers.
"""

import importlib

from qkvbench.hub.registration import register

_DOORS = {
    "load": "qkvbench.hub.safety",
    "checked": "qkvbench.hub.safety",
    "check_settings": "qkvbench.hub.safety",
    "UnsafeFolderError": "qkvbench.hub.safety",
    "with_mode": "qkvbench.hub.models",
    "converted": "qkvbench.hub.conversion",
    "slim": "qkvbench.hub.slim_cache",
    "SlimCache": "qkvbench.hub.slim_cache",
    "conditions": "qkvbench.hub.key_only",
}

register()


def __getattr__(name: str) -> object:
    """A name of this package, imported when it is first asked for."""
    if name not in _DOORS:
        raise AttributeError(f"qkvbench.hub has no {name!r}; it has {', '.join(sorted(_DOORS))}.")
    try:
        return getattr(importlib.import_module(_DOORS[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            f"qkvbench.hub.{name} needs transformers, which is not installed: ./qkv setup hf"
        ) from None


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOORS])
