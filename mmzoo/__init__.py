"""mmzoo: a multimodal, multi-task model zoo with a training command line."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "create_model": "mmzoo.zoo:create_model",
    "list_models": "mmzoo.zoo:list_models",
    "load": "mmzoo.zoo:load",
    "Batch": "mmzoo.batch:Batch",
    "Sample": "mmzoo.batch:Sample",
}


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that `import mmzoo` is instant."""
    if name not in _LAZY:
        raise AttributeError(f"module 'mmzoo' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """Return the public names."""
    return ["__version__", *sorted(_LAZY)]
