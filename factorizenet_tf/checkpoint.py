"""Where a training stands, as one file: every variable, the phase, the epoch and the history so far."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .files import written_aside

__all__ = ["CHECKPOINT_FILE", "Checkpoint", "read_checkpoint", "write_checkpoint"]

CHECKPOINT_FILE = "checkpoint.npz"


@dataclass(frozen=True)
class Checkpoint:
    """State after a whole epoch.

    Args:
        phase: "float" or "qat".
        epoch: epochs of the phase that are done.
        history: one dict an epoch, of all phases so far.
        arrays: the values of the step's variables, in order.
    """

    phase: str
    epoch: int
    history: list[dict]
    arrays: list[np.ndarray]

    def restore(self, variables: Sequence) -> None:
        """Assign the arrays to the variables they were taken from.

        Raises:
            ValueError: number or shapes differ.
        """
        shapes = [a.shape for a in self.arrays]
        wanted = [tuple(v.shape) for v in variables]
        if shapes != wanted:
            raise ValueError(
                f"the checkpoint holds {len(shapes)} variables of another model or optimizer; {len(wanted)} are needed"
            )
        for variable, array in zip(variables, self.arrays):
            variable.assign(array)


def write_checkpoint(path: Path, *, phase: str, epoch: int, history: list[dict], variables: Sequence) -> None:
    """Replace the checkpoint by the present state; the old one stays until the new one is whole."""
    meta = json.dumps({"phase": phase, "epoch": epoch, "history": history})
    arrays = {f"v{i}": v.numpy() for i, v in enumerate(variables)}
    with written_aside(path) as aside, open(aside, "wb") as file:
        np.savez(file, meta=np.array(meta), **arrays)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: the file is truncated or damaged; the message says what to do.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            arrays = [file[f"v{i}"] for i in range(len(file.files) - 1)]
        return Checkpoint(meta["phase"], meta["epoch"], meta["history"], arrays)
    except Exception as error:  # zipfile and NumPy's header each raise many kinds on damaged bytes
        raise ValueError(
            f"the checkpoint {path} is damaged ({error}); delete it to train this run from its start"
        ) from None
