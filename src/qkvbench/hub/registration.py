"""Who asks transformers for a model after ``import qkvbench.hub`` finds those with ``qkv_mode``.

Importing transformers takes seconds, and what only reads a folder's settings can do without. So
the classes are registered when transformers' own table of configs is first imported, or now if
that has happened.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Everything that finds a class by a config imports it.
TABLE = "transformers.models.auto.configuration_auto"


def when_imported() -> None:
    """Register when the library's table is there."""
    if TABLE in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Waiting())


def _register() -> None:
    importlib.import_module("qkvbench.hub.models").register()


class _Waiting(MetaPathFinder):
    """Waits for the import of the table, then steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The table's own spec, with its loader followed by ours."""
        if fullname != TABLE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Followed(spec.loader)
        return spec


class _Followed(Loader):
    """Another loader, after which the classes are registered."""

    def __init__(self, loader: Loader) -> None:
        """What `loader` loads, and then ours."""
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the other loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module as the other loader does, then register."""
        self.loader.exec_module(module)
        _register()
