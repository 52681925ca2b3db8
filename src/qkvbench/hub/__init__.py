"""Models of transformers: safe loading, caches of half the size, and attention by ``qkv_mode``.

Names are imported on first use, so that importing this package imports no transformers.
"""

import importlib

_MODULES = {
    "register": "qkvbench.hub.models",
    "load": "qkvbench.hub.safety",
    "check_folder": "qkvbench.hub.safety",
    "check_settings": "qkvbench.hub.safety",
    "UnsafeFolderError": "qkvbench.hub.safety",
    "with_mode": "qkvbench.hub.models",
    "convert": "qkvbench.hub.conversion",
    "slim": "qkvbench.hub.slim_cache",
    "SlimCache": "qkvbench.hub.slim_cache",
    "SlimEncoderDecoderCache": "qkvbench.hub.slim_cache",
    "FewBitsCache": "qkvbench.hub.few_bits",
    "conditions": "qkvbench.hub.key_only",
}


def __getattr__(name: str) -> object:
    """A name of this package, imported on first use."""
    if name not in _MODULES:
        raise AttributeError(f"qkvbench.hub has no {name!r}; it has {', '.join(sorted(_MODULES))}.")
    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            f"qkvbench.hub.{name} needs transformers, which is not installed: ./qkv setup hf"
        ) from None


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
