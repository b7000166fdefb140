"""What a walk is made of: nets to train, what came of them, how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .spec import ModelSpec

__all__ = ["Proposal", "Result", "Walk", "after", "before"]

LEAST_ERROR = 0.005  # so that a curve that ends without an error still says how errors fall


@dataclass(frozen=True)
class Proposal:
    """A net to train.

    Args:
        spec: the net.
        reason: why it is tried.
        round: which round it belongs to, from 1.
        parent: a net of an earlier round that it differs little from, or None.
        threshold: validation accuracy (0..1) by epoch below which its training is hopeless; empty: none.
    """

    spec: ModelSpec
    reason: str
    round: int
    parent: ModelSpec | None = None
    threshold: tuple[float, ...] = ()


@dataclass(frozen=True)
class Result:
    """What came of a net.

    Args:
        accuracy: int8 validation accuracy, 0..1; None: the training failed.
        curve: float validation accuracy after each epoch.
        pruned: its training was given up early, so `accuracy` is no final one.
    """

    accuracy: float | None
    curve: tuple[float, ...] = ()
    pruned: bool = False


@dataclass
class Walk:
    """How far a walk is.

    Args:
        proposals: every net proposed so far, by round.
        pending: those of the last round that have no result yet.
        best: the best net so far, or None.
        ranked: every net with a final accuracy, best first.
        steps: a line for each finished round: what it was for and what came of it.
        rejected: nets that were looked at and not proposed, with the reason.
        finished: nothing is left to propose.
    """

    proposals: list[Proposal] = field(default_factory=list)
    pending: list[Proposal] = field(default_factory=list)
    best: ModelSpec | None = None
    ranked: list[ModelSpec] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    rejected: dict[ModelSpec, str] = field(default_factory=dict)
    finished: bool = False


def after(curve: Sequence[float], epoch: int, accuracy: float) -> float:
    """Where a training ends that has an accuracy after an epoch, if its errors fall in proportion to another's.

    Args:
        curve: of the other: the best accuracy (0..1) up to each epoch, to the last.
        epoch: from 1.
        accuracy: 0..1.
    """
    return 1 - (1 - accuracy) * max(LEAST_ERROR, 1 - curve[-1]) / max(LEAST_ERROR, 1 - curve[epoch - 1])


def before(curve: Sequence[float], epoch: int, accuracy: float) -> float:
    """The inverse of `after`: the accuracy after an epoch of a training that ends with one."""
    return 1 - (1 - accuracy) * max(LEAST_ERROR, 1 - curve[epoch - 1]) / max(LEAST_ERROR, 1 - curve[-1])
