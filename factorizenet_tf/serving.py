"""Nets where they are used: exported for TensorFlow Serving, served at once, and asked over the network."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .server import serve
    from .serving_client import Client, ServingError
    from .serving_config import set_labels
    from .serving_export import ServingExport, export

__all__ = ["Client", "ServingError", "ServingExport", "export", "serve", "set_labels"]

_MODULE_OF = {
    "Client": "serving_client",
    "ServingError": "serving_client",
    "ServingExport": "serving_export",
    "export": "serving_export",
    "serve": "server",
    "set_labels": "serving_config",
}


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __package__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
