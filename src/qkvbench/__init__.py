"""Does a Transformer need separate query, key and value projections, and what is saved without?

``qkvbench.torch`` is the PyTorch backend, ``qkvbench.jax`` that in JAX,
``qkvbench.run(experiment)`` a run's record, ``qkvbench.hub`` what is done with pretrained
checkpoints. All are found on first
use, so that importing this package imports no framework.
"""

import importlib

_DOORS = {
    "torch": ("qkvbench.backends.torch", None),
    "jax": ("qkvbench.backends.jax", None),
    "hub": ("qkvbench.hub", None),
    "run": ("qkvbench.train.dependencies", "run_with_dependencies"),
    "Experiment": ("qkvbench.experiment", "Experiment"),
    "Training": ("qkvbench.experiment", "Training"),
}


def __getattr__(name: str) -> object:
    """A door of the library, opened when it is first asked for."""
    if name not in _DOORS:
        raise AttributeError(f"qkvbench has no {name!r}; it has {', '.join(sorted(_DOORS))}.")
    module, attribute = _DOORS[name]
    found = importlib.import_module(module)
    return found if attribute is None else getattr(found, attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOORS])
