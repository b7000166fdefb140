"""Finding the best factorized net for a requirement: the walk as a KerasTuner search.

    spec = fnet.ModelSpec(width=16)
    oracle = fnet.tuner.FactorizationOracle(spec, max_macs=4_000_000)
    tuner = fnet.tuner.FactorizationTuner(oracle, fnet.load_dataset("cifar10"), directory="runs/search")
    tuner.search()
    tuner.get_best_models()

Importing this module loads KerasTuner and TensorFlow. `factorizenet_tf.walk` has the walk itself, which needs neither.
"""

from __future__ import annotations

from .oracle import FactorizationOracle
from .requirement import Requirement
from .search_tuner import FactorizationTuner
from .trial import search_space

__all__ = ["FactorizationOracle", "FactorizationTuner", "Requirement", "search_space"]
