"""Giving up a training whose first epochs say that it is hopeless."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ._keras import keras
from .checkpoint import CHECKPOINT_FILE, read_checkpoint
from .quantize import is_quantize_aware

__all__ = ["GivenUp", "Watch", "float_curve"]


class GivenUp(Exception):  # noqa: N818 (no error: an outcome)
    """The float training was given up, or has the epochs that were asked for; its checkpoint stays."""


class Watch(keras.callbacks.Callback):
    """Raises `GivenUp` after the first float epoch at which the best accuracy so far is below the threshold, or the last that is wanted.

    Args:
        folder: of the run; a run that goes on is judged by the epochs it has, too.
        threshold: validation accuracy (0..1) by epoch; empty: never.
        tell: called with (phase, epoch, validation accuracy) after each epoch, or None.
        until: float epochs that are wanted; None: all.
    """

    def __init__(self, folder: Path, threshold: Sequence[float], tell=None, until: int | None = None):
        super().__init__()
        self.until = until
        self.threshold = tuple(threshold)
        self.curve = float_curve(folder)
        self._tell = tell

    def check(self) -> None:
        """Raises GivenUp where the epochs so far are hopeless or enough."""
        epoch = len(self.curve)
        if self.until is not None and epoch >= self.until:
            raise GivenUp
        if 0 < epoch < len(self.threshold) and max(self.curve) < self.threshold[epoch - 1]:
            raise GivenUp

    def on_epoch_end(self, epoch, logs=None):
        """Keras calls it, with epochs from 0."""
        phase = "qat" if is_quantize_aware(self.model) else "float"
        if self._tell is not None:
            self._tell(phase, epoch + 1, logs["val_accuracy"])
        if phase == "float":
            self.curve.append(logs["val_accuracy"])
            self.check()


def float_curve(folder: Path) -> list[float]:
    """Validation accuracy after each float epoch that a run's folder holds; empty where there is no run yet."""
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return []
    return [row["val_accuracy"] for row in read_checkpoint(path).history if row["phase"] == "float"]
