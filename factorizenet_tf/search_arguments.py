"""Whether an oracle, a data set and a recipe fit together, said before anything is trained."""

from __future__ import annotations

from ._keras_tuner import keras_tuner
from .data import Dataset
from .oracle import FactorizationOracle
from .recipe import Recipe
from .requirement import Requirement
from .space import Space
from .spec import ModelSpec
from .training import check_data

__all__ = ["OBJECTIVES", "check_search", "space_of"]

OBJECTIVES = {
    "val_float_accuracy": "float",
    "val_ptq_per_tensor_accuracy": "ptq_per_tensor",
    "val_ptq_per_channel_accuracy": "ptq_per_channel",
    "val_qat_accuracy": "qat",
    "val_int8_accuracy": "tflite",
}  # metric -> precision in a run's metrics


def space_of(oracle: keras_tuner.Oracle, spec: ModelSpec | None) -> Space:
    """What the oracle searches: its own space, or a stock oracle's widths with the stages of `spec`.

    Raises:
        ValueError: a stock oracle without a spec, or a spec that is not the oracle's.
    """
    if isinstance(oracle, FactorizationOracle):
        if spec is not None and spec != oracle.space.spec:
            raise ValueError(f"spec is {spec}, the oracle's is {oracle.space.spec}; leave it out")
        return oracle.space
    if spec is None:
        raise ValueError(f"a {type(oracle).__name__} knows no net; give spec=")
    widths = next((tuple(hp.values) for hp in oracle.hyperparameters.space if hp.name == "width"), (spec.width,))
    return Space(spec, widths)


def check_search(
    oracle: keras_tuner.Oracle, spec: ModelSpec, dataset: Dataset, recipe: Recipe, requirement: Requirement | None
) -> None:
    """Raise ValueError where they do not fit together, with the value and the remedy."""
    kind = type(oracle).__name__
    if requirement is not None and isinstance(oracle, FactorizationOracle):
        raise ValueError(f"a {kind} has its own requirement; leave {requirement} out")
    if requirement is not None and requirement.min_accuracy is not None:
        raise ValueError(
            f"min_accuracy is {requirement.min_accuracy}; a {kind} looks for the highest accuracy: leave it out, or use a FactorizationOracle"
        )
    if getattr(oracle, "max_epochs", recipe.epochs) != recipe.epochs:
        raise ValueError(
            f"the {kind}'s max_epochs is {oracle.max_epochs}, the recipe's epochs {recipe.epochs}; make them equal"
        )
    if oracle.objective.name not in OBJECTIVES:
        raise ValueError(f"the objective is {oracle.objective.name!r}; it must be one of {', '.join(OBJECTIVES)}")
    if not recipe.qat_epochs:
        raise ValueError("the recipe has no QAT; use qat_epochs of at least 1, a search compares int8 nets")
    check_data(spec, dataset)
