"""Which granularity of depth factorization, under int8 quantization, for a budget: FactorizeNet on TensorFlow.

Implements the strategy of Yun & Wong, "FactorizeNet: Progressive Depth Factorization for Efficient Network
Architecture Exploration Under Quantization Constraints", arXiv 2011.14586. Importing the package loads neither
TensorFlow nor pandas; each name below loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

# TensorFlow reads it when it is imported, and by itself uses oneDNN only on x86 processors with AVX512-VNNI or AMX. Without
# oneDNN it has no gradient for grouped convolutions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

if TYPE_CHECKING:
    from . import baselines, serving, tuner, zoo
    from .analysis import Analysis, load_analysis
    from .callback import DistributionTracker
    from .cost import cost_table, count_macs, count_params
    from .data import Dataset, Split, load_dataset
    from .evaluation import Agreement, accuracy, agreement
    from .int8 import Int8Model, Latency
    from .layerwise import analyze, compare_levels
    from .model import FactorizeNet, build
    from .phase import NanLossError
    from .quantize import quantize_aware
    from .recipe import Recipe, recipe_for
    from .run import Run, load_run
    from .spec import ModelSpec, Stage, max_level
    from .tflite import to_tflite
    from .training import train

__all__ = [
    "Agreement",
    "Analysis",
    "Dataset",
    "DistributionTracker",
    "FactorizeNet",
    "Int8Model",
    "Latency",
    "ModelSpec",
    "NanLossError",
    "Recipe",
    "Run",
    "Split",
    "Stage",
    "accuracy",
    "agreement",
    "analyze",
    "baselines",
    "build",
    "compare_levels",
    "cost_table",
    "count_macs",
    "count_params",
    "load_analysis",
    "load_dataset",
    "load_run",
    "max_level",
    "quantize_aware",
    "recipe_for",
    "serving",
    "to_tflite",
    "train",
    "tuner",
    "zoo",
]

_MODULES = {
    "analysis": ("Analysis", "load_analysis"),
    "callback": ("DistributionTracker",),
    "cost": ("cost_table", "count_macs", "count_params"),
    "data": ("Dataset", "Split", "load_dataset"),
    "evaluation": ("Agreement", "accuracy", "agreement"),
    "int8": ("Int8Model", "Latency"),
    "layerwise": ("analyze", "compare_levels"),
    "model": ("FactorizeNet", "build"),
    "phase": ("NanLossError",),
    "quantize": ("quantize_aware",),
    "recipe": ("Recipe", "recipe_for"),
    "run": ("Run", "load_run"),
    "spec": ("ModelSpec", "Stage", "max_level"),
    "tflite": ("to_tflite",),
    "training": ("train",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

try:
    __version__ = version("factorizenet_tf")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0+unknown"


def __getattr__(name: str):
    if name in ("baselines", "serving", "tuner", "zoo"):
        return importlib.import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
