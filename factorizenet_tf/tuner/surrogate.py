"""What the level of each stage does to accuracy, estimated from the nets trained so far.

A Gaussian process over a sum: accuracy is taken for a constant, an effect of the level in each stage, an effect of the
width, one of the MACs, and a little of the combination. Levels next to each other are taken for alike, the regular
convolution (level 0) for less like the factorized ones, which have two convolutions in its place.

Source: additive Gaussian processes, Duvenaud et al., arXiv 1112.4394; the constants are our choice, by replays of walks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..spec import ModelSpec
from .space import Space, macs

__all__ = ["Candidates", "Effects", "Estimate"]

ALIKE = 0.75  # how much the effect of a level tells about the next one's
REGULAR = 0.3  # how much a factorized level's effect tells about level 0's, on top of that
COMBINED = 0.3  # variance of what is no sum of effects, an effect's own being 1
CONSTANT = 4.0
NOISE = 0.7  # deviation of a training's accuracy over seeds in points, an effect's own being 1 point


class Candidates:
    """Every net of a space as arrays, in the order of `Space.nets`.

    Args:
        space: the `Space`.

    Attributes:
        levels: int (n, stages).
        width: int (n,): which of the space's widths.
        macs: int64 (n,). MACs are a sum over stages, so few nets are counted.
    """

    def __init__(self, space: Space):
        self._space = space
        self._shapes = [tuple(k + 1 for k in space.uniform(width)[-1].levels) for width in space.widths]
        counts = [int(np.prod(shape)) for shape in self._shapes]
        self._first = np.cumsum([0, *counts])
        levels, costs = [], []
        for width, shape in zip(space.widths, self._shapes):
            some = np.indices(shape).reshape(len(shape), -1).T
            regular = space.net(0, width)
            cost = np.full(len(some), macs(regular))
            for stage, number in enumerate(shape):
                alone = [macs(space.changed(regular, stage, level)) for level in range(number)]
                cost += (np.array(alone) - macs(regular))[some[:, stage]]
            levels.append(some)
            costs.append(cost)
        self.levels, self.macs = np.concatenate(levels), np.concatenate(costs)
        self.width = np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        return len(self.macs)

    def net(self, place: int) -> ModelSpec:
        """The net at a place."""
        width = self._space.widths[self.width[place]]
        return self._space.net(tuple(int(level) for level in self.levels[place]), width)

    def place(self, net: ModelSpec) -> int:
        """Where a net is."""
        which = self._space.widths.index(net.width)
        return int(self._first[which] + np.ravel_multi_index(net.levels, self._shapes[which]))


@dataclass
class Estimate:
    """What is expected of every candidate.

    Args:
        mean, deviation: of the accuracy in percent, float (n,).
    """

    mean: np.ndarray
    deviation: np.ndarray
    _effects: Effects
    _known: np.ndarray
    _inverse: np.ndarray
    _supposed: list[np.ndarray] = field(default_factory=list)

    def suppose(self, place: int) -> None:
        """Take a net for trained with its mean: less deviation at it and its like, every mean as it was."""
        covariance = self._effects.column(place) - self._known.T @ (self._inverse @ self._known[:, place])
        for share in self._supposed:
            covariance -= share * share[place]
        variance = np.square(self.deviation)
        share = covariance / np.sqrt(variance[place] + NOISE**2)
        self._supposed.append(share)
        self.deviation = _root(variance - np.square(share))


class Effects:
    """Estimates the accuracy of candidates from that of a few.

    Args:
        nets: the candidates.
        widths: of the stem, as the candidates count them.
    """

    def __init__(self, nets: Candidates, widths: Sequence[int]):
        self._nets = nets
        number = np.arange(nets.levels.max() + 1)
        self._likeness = ALIKE ** np.abs(number[:, None] - number)
        self._likeness[0, 1:] *= REGULAR
        self._likeness[1:, 0] *= REGULAR
        self._widths = np.log2(widths)
        size = np.log2(nets.macs)
        self._size = size - size.mean()
        parts = nets.levels.shape[1] + (len(widths) > 1)
        self._variance = CONSTANT + np.square(self._size) + parts + COMBINED
        self._columns: dict[int, np.ndarray] = {}

    def column(self, place: int) -> np.ndarray:
        """How alike every candidate is to one: float (n,)."""
        if place not in self._columns:
            nets = self._nets
            likenesses = [self._likeness[levels[place]][levels] for levels in nets.levels.T]  # one a stage
            if len(self._widths) > 1:
                distance = np.abs(self._widths - self._widths[nets.width[place]])
                likenesses.append(np.exp(-distance)[nets.width])
            alike = CONSTANT + self._size * self._size[place] + sum(likenesses)
            self._columns[place] = alike + COMBINED * np.prod(likenesses, axis=0)
        return self._columns[place]

    def estimate(self, accuracies: Mapping[int, float]) -> Estimate:
        """What is expected of every candidate.

        Args:
            accuracies: percent, by place; at least one.
        """
        mean, known, inverse = self._solved(accuracies)
        explained = np.einsum("ij,ij->j", known, inverse @ known)
        return Estimate(mean, _root(self._variance - explained), self, known, inverse)

    def mean(self, values: Mapping[int, float]) -> np.ndarray:
        """The mean alone, which takes far less time: of any figure that is nearly a sum of effects, as costs are."""
        return self._solved(values)[0]

    def _solved(self, of):
        places, values = list(of), np.array(list(of.values()))
        known = np.stack([self.column(place) for place in places])
        inverse = np.linalg.inv(known[:, places] + NOISE**2 * np.eye(len(places)))
        return values.mean() + known.T @ (inverse @ (values - values.mean())), known, inverse


def _root(variance):
    return np.sqrt(np.maximum(variance, 1e-9))
