"""A net as a KerasTuner trial, and a trial's metrics as the walk's result."""

from __future__ import annotations

from ._keras_tuner import TrialStatus, keras_tuner
from .proposal import Result
from .space import Space
from .spec import ModelSpec

__all__ = ["PARENT", "REASON", "ROUND", "THRESHOLD", "metrics_of", "result_of", "search_space", "spec_of", "values_of"]

# What the oracle tells a worker beside the net, among a trial's hyperparameter values.
PARENT, REASON, ROUND, THRESHOLD = "walk/parent", "walk/reason", "walk/round", "walk/threshold"
CURVE = "val_float_accuracy_epoch_{}"
PRUNED = "pruned"


def search_space(spec: ModelSpec, widths: tuple[int, ...] | None = None) -> keras_tuner.HyperParameters:
    """The space as KerasTuner's own, for its stock oracles: a Choice of levels for each of `stage1`, `stage2`, ...

    Args:
        spec: gives the stages, and the width unless `widths` is given.
        widths: of the stem; where there are several, a Choice `width`.
    """
    space = Space(spec, (spec.width,) if widths is None else tuple(widths))
    hyperparameters = keras_tuner.HyperParameters()
    lasts = [space.uniform(width)[-1].levels for width in space.widths]
    for number, last in enumerate(map(max, zip(*lasts)), 1):
        hyperparameters.Choice(f"stage{number}", list(range(last + 1)))
    if len(space.widths) > 1:
        hyperparameters.Choice("width", list(space.widths))
    return hyperparameters


def values_of(space: Space, spec: ModelSpec) -> dict[str, int]:
    """A net as hyperparameter values."""
    values = {f"stage{number}": level for number, level in enumerate(spec.levels, 1)}
    return values | ({"width": spec.width} if len(space.widths) > 1 else {})


def spec_of(space: Space, values: dict) -> ModelSpec:
    """The net of hyperparameter values; a level above a stage's last is clipped to it."""
    levels = tuple(int(values[f"stage{number}"]) for number in range(1, len(space.spec.stages) + 1))
    width = int(values.get("width", space.widths[0]))
    last = space.uniform(width)[-1].levels
    return space.net(tuple(map(min, levels, last)), width)


def metrics_of(objective: str, accuracy: float, curve: list[float], pruned: bool) -> dict[str, float]:
    """The metrics that `result_of` reads back; KerasTuner carries numbers alone."""
    epochs = {CURVE.format(epoch): value for epoch, value in enumerate(curve, 1)}
    return {objective: accuracy, PRUNED: float(pruned), **epochs}


def result_of(trial, objective: str) -> Result:
    """What came of a trial that has ended. Rounded, since workers send single precision."""
    if trial.status == TrialStatus.FAILED:
        return Result(None)

    def value(name):
        return round(float(trial.metrics.get_last_value(name)), 6) if trial.metrics.exists(name) else None

    curve = []
    while (accuracy := value(CURVE.format(len(curve) + 1))) is not None:
        curve.append(accuracy)
    return Result(value(objective), tuple(curve), bool(value(PRUNED)))
