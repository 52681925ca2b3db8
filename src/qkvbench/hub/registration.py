"""Who asks transformers for a model after ``import qkvbench.hub`` finds those with ``qkv_mode``.

Importing transformers takes seconds, and what only reads a folder's settings can do without. So
names alone are put into the library's tables, when these are first imported or now if they are
there; a class is made when a name is first looked up, as the library does it with its own.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from qkvbench.hub.families import FAMILIES


def register() -> None:
    """Put the names into the tables, now or when they are imported."""
    for family in FAMILIES.values():
        place = f"transformers.models.{family.model_type}"
        sys.modules.setdefault(place, _Classes(place))
    waiting: dict[str, Callable[[Any], None]] = {}
    for table, extend in _TABLES.items():
        if table in sys.modules:
            extend(sys.modules[table])
        else:
            waiting[table] = extend
    if waiting:
        sys.meta_path.insert(0, _Waiting(waiting))


def _extend_configs(table: Any) -> None:
    for family in FAMILIES.values():
        table.CONFIG_MAPPING_NAMES[family.model_type] = family.config


def _extend_models(table: Any) -> None:
    for family in FAMILIES.values():
        for auto in family.classes:
            mapping = getattr(table, auto)._model_mapping
            mapping._reverse_config_mapping[family.config] = family.model_type
            mapping._model_mapping[family.model_type] = family.named(auto)


def _refuse_unheeded(modeling: Any) -> None:
    """The library keeps any word in any config: have its own models refuse a mode they ignore."""
    plain = modeling.PreTrainedModel.__init__

    @functools.wraps(plain)
    def __init__(self: Any, config: Any, *args: Any, **more: Any) -> None:  # noqa: N807
        kind = getattr(config, "model_type", None)
        if kind in FAMILIES and hasattr(config, "qkv_mode"):
            raise ValueError(
                f"A {kind} model does not heed qkv_mode={config.qkv_mode!r}, so it would be "
                f"'q,k,v'.\nTake qkvbench.hub.with_mode(config, mode), or "
                f"AutoConfig.for_model('{FAMILIES[kind].model_type}', qkv_mode=...); for weights "
                "that satisfy a tie, qkvbench.hub.converted(model, mode)."
            )
        plain(self, config, *args, **more)

    modeling.PreTrainedModel.__init__ = __init__


_TABLES: dict[str, Callable[[Any], None]] = {
    "transformers.modeling_utils": _refuse_unheeded,
    "transformers.models.auto.configuration_auto": _extend_configs,
    "transformers.models.auto.modeling_auto": _extend_models,
}


class _Classes(ModuleType):
    """Where the library looks for the classes of a family; they are made when it does."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module("qkvbench.hub.models"), name)


class _Waiting(MetaPathFinder):
    """Waits for the import of tables, and steps aside for everything else."""

    def __init__(self, tables: dict[str, Callable[[Any], None]]) -> None:
        """What is to be done with each table when it is there."""
        self.tables = tables

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A table's own spec, with its loader followed by ours."""
        extend = self.tables.pop(fullname, None)
        if extend is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Followed(spec.loader, extend)
        return spec


class _Followed(Loader):
    """Another loader, after which a table is extended."""

    def __init__(self, loader: Loader, extend: Callable[[Any], None]) -> None:
        """What `loader` loads, extended."""
        self.loader, self.extend = loader, extend

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the other loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module as the other loader does, then extend it."""
        self.loader.exec_module(module)
        self.extend(module)
