"""The question, the state and the ranking of a search; `progressive` has the search itself."""

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..requirement import Requirement, ranked
from ..spec import ModelSpec
from .space import NetSpace, distinct, macs
from .surrogate import AdditiveGP

__all__ = ["SAMPLED", "Proposal", "Result", "Search", "SearchState", "in_proportion", "ranking", "tie_break"]

MAX_HELD, MAX_HELD_MACROS = 300_000, 100_000  # nets held at once, of levels and widths alone and of more choices
SAMPLED = 8_192  # nets drawn of a larger space
MIN_ERROR = 0.005  # used for an error of 0, so that a curve that reaches it still tells how errors fall


@dataclass(frozen=True)
class Proposal:
    """A net to train.

    Args:
        spec: the net.
        reason: why it is proposed.
        round: number of its batch, from 1.
        parent: a net of an earlier batch with similar levels, or None.
        threshold: validation accuracy (0..1) by epoch below which its training is hopeless; empty: none.
    """

    spec: ModelSpec
    reason: str
    round: int
    parent: ModelSpec | None = None
    threshold: tuple[float, ...] = ()


@dataclass(frozen=True)
class Result:
    """The outcome of a net's training.

    Args:
        accuracy: int8 validation accuracy, 0..1; None (or NaN): the training failed.
        curve: float validation accuracy after each epoch; NaN counts as 0.
        pruned: whether the training was stopped early as hopeless, so that `accuracy` is not final.
    """

    accuracy: float | None
    curve: tuple[float, ...] = ()
    pruned: bool = False

    def __post_init__(self):
        if self.accuracy is not None and math.isnan(self.accuracy):
            object.__setattr__(self, "accuracy", None)
        object.__setattr__(self, "curve", tuple(0.0 if math.isnan(value) else value for value in self.curve))

    def __str__(self) -> str:
        """Describe the outcome in a word or two."""
        if self.accuracy is None:
            return "failed"
        return f"given up after epoch {len(self.curve)}" if self.pruned else f"{100 * self.accuracy:.2f} %"


@dataclass(frozen=True, eq=False)
class Search:
    """The question that a search answers, and what calls of `propose` keep for the next ones to be fast.

    Args:
        space: the nets to choose from.
        requirement: the budgets and the floor.
        violation: says why a net is over a budget; None if it fits.
        patience: the search ends after this many batches of the surrogate without a better net, times the number of kinds of
            choice (levels, blocks, channels, macro-architectures). It ends earlier if no net is left for a batch, or if
            MAX_COST_CHECKS nets in a row are over a measured budget.
        seed: decides between nets of equal cost; the same seed gives the same search.
        max_nets: maximum number of nets to propose; None: no limit. No batch is begun once as many have results.
        begun: by round the (net, reason, parent) of trials that exist; they are the batch if an earlier version proposed
            other nets than this one does.
    """

    space: NetSpace
    requirement: Requirement
    violation: Callable[[ModelSpec], str | None]
    patience: int = 3
    seed: int = 0
    max_nets: int | None = None
    begun: dict[int, list[tuple]] = field(default_factory=dict, init=False, repr=False)
    _chosen: dict = field(default_factory=dict, init=False, repr=False)

    @functools.cached_property
    def whole(self) -> AdditiveGP | None:
        """The model of all nets' accuracies, if the space is small enough (300,000 nets take 0.4 GB and 0.7 s a proposal), else None."""
        is_small = self.space.count() <= (MAX_HELD_MACROS if self.space.has_more_than_levels else MAX_HELD)
        return AdditiveGP(self.space) if is_small else None

    @functools.cached_property
    def boldness(self) -> float:
        """Say how many deviations above its mean a net's accuracy is hoped to be.

        1 for levels and widths alone, and if the nets' layers were measured before any training; else more among more nets.

        Source: half of the square root of 2 ln(nets), which bounds all of them at once in GP-UCB, Srinivas et al., arXiv 0912.3995.
        """
        is_open = self.space.has_more_than_levels and not self.space.has_trend
        return math.sqrt(math.log(self.space.count()) / 2) if is_open else 1.0

    @functools.cached_property
    def drawn(self) -> np.ndarray:
        """Rows of the space drawn at random."""
        return self.sample(0)

    @functools.cached_property
    def _center(self) -> float:
        return float(np.log2(self.space.count_macs(self.drawn)).mean())

    def sample(self, number: int) -> np.ndarray:
        """Draw rows of the space, different ones for each number and seed."""
        return self.space.sample(SAMPLED, np.random.default_rng([self.seed % 2**32, number]))

    def model(self, nets: Iterable[ModelSpec], rows: np.ndarray) -> AdditiveGP:
        """Give the model of the whole space or, if it is too large, of `nets` and the nets of `rows`."""
        if self.whole is not None:
            return self.whole
        known = np.array([self.space.row_of(net) for net in nets], int).reshape(-1, rows.shape[1])
        return AdditiveGP(self.space, distinct(np.concatenate([known, rows])), self._center)


@dataclass
class SearchState:
    """The state of a search after some results.

    Args:
        search, results: as given to `propose`.
        proposals: every net proposed so far, by batch.
        ranked: every net with a final accuracy, best first.
        steps: one line for each finished batch: its purpose and its outcome.
        rejected: nets that were considered and not proposed, with the reason.
    """

    search: Search = field(repr=False, compare=False)
    results: Mapping[ModelSpec, Result] = field(repr=False, compare=False)
    proposals: list[Proposal] = field(default_factory=list)
    ranked: list[ModelSpec] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    rejected: dict[ModelSpec, str] = field(default_factory=dict)

    @property
    def pending(self) -> list[Proposal]:
        """The proposals, all of the last batch, that have no result yet; none at the end of the search."""
        return [proposal for proposal in self.proposals if proposal.spec not in self.results]

    @property
    def best(self) -> ModelSpec | None:
        """The best net so far."""
        return self.ranked[0] if self.ranked else None

    @property
    def reaches_floor(self) -> bool:
        """Tell whether there is a floor and the best net reaches it."""
        floor = self.search.requirement.min_accuracy
        return None not in (floor, self.best) and self.results[self.best].accuracy >= floor

    def macs_ceiling(self) -> float:
        """Give the MACs that a net must stay below to be worth a training: the best net's, if that reaches the floor."""
        return macs(self.best) if self.reaches_floor else math.inf

    def macs_limit(self) -> float:
        """Give the most MACs that a net may have to be considered."""
        return min(self.search.requirement.limits.get("macs", math.inf), self.macs_ceiling() - 1)

    def fits(self, spec: ModelSpec) -> bool:
        """Tell whether a net is within all budgets; if not, keep the reason."""
        if macs(spec) >= self.macs_ceiling():
            return False
        reason = self.search.violation(spec)
        if reason is not None:
            self.rejected.setdefault(spec, reason)
        return reason is None

    def batch(self, nets: Iterable) -> list[Proposal]:
        """Make proposals of (net, reason, parent), the most MACs first; nets proposed before are left out."""
        proposed = {proposal.spec for proposal in self.proposals}
        number = 1 + (self.proposals[-1].round if self.proposals else 0)
        begun = [entry for entry in self.search.begun.get(number, []) if self.search.violation(entry[0]) is None]
        nets = [*nets]
        nets = nets if {spec for spec, *_ in begun} <= {spec for spec, *_ in nets} else begun
        nets = [entry for entry in nets if entry[0] not in proposed]
        threshold = self._threshold()
        nets.sort(key=lambda entry: (-macs(entry[0]), tie_break(entry[0], self.search.seed)))
        return [Proposal(spec, reason, number, parent, threshold) for spec, reason, parent in nets]

    def _threshold(self) -> tuple[float, ...]:
        """By epoch, the accuracy below which a training would end far below the best net if its errors fell like that net's."""
        if self.best is None:
            return ()
        result = self.results[self.best]
        spare = result.accuracy - self.search.requirement.min_accuracy if self.reaches_floor else 0.0
        highest = list(itertools.accumulate(result.curve, max))
        epochs = len(highest)
        needed = (
            in_proportion(highest[-1] - spare - _margin(epoch / epochs), highest[-1], accuracy)
            for epoch, accuracy in enumerate(highest, 1)
        )
        return tuple(round(max(0.0, accuracy), 4) for accuracy in needed)

    def take(self, purpose: str, batch: list[Proposal]) -> None:
        """Take in a batch and rank all nets with results; once all of the batch have some, record its outcome."""
        former = self.best
        self.proposals += batch
        for proposal in batch:  # a uniform level that was skipped may come back as a neighbour of another net
            self.rejected.pop(proposal.spec, None)
        trained = {p.spec: self.results[p.spec] for p in self.proposals if p.spec in self.results}
        self.ranked = ranking(self.search.requirement, trained, self.search.seed)
        if self.pending:
            return
        outcome = "nothing finished" if self.best is None else "none is better"
        if self.best != former:
            outcome = f"best is {self.best.name} ({next(p.reason for p in batch if p.spec == self.best)})"
        outcomes = ", ".join(f"{p.spec.name} {self.results[p.spec]}" for p in batch)
        self.steps.append(f"round {batch[0].round}, {purpose}: {outcomes}; {outcome}")


def ranking(requirement: Requirement, results: Mapping[ModelSpec, Result], seed: int = 0) -> list[ModelSpec]:
    """Sort the nets with a final accuracy, best first: those that reach the floor by few MACs, the others by accuracy."""
    final = {
        spec: result.accuracy for spec, result in results.items() if result.accuracy is not None and not result.pruned
    }
    by_chance = sorted(final, key=lambda spec: tie_break(spec, seed), reverse=True)
    rows = [{"spec": spec, "macs": macs(spec), "accuracy": final[spec]} for spec in by_chance]
    floor = None if requirement.min_accuracy is None else Requirement(min_accuracy=requirement.min_accuracy)
    return [row["spec"] for row in ranked(rows, floor)]


def in_proportion(accuracy: float, before: float, after: float) -> float:
    """Extrapolate an accuracy, its errors changing in proportion to those of a training that went from `before` to `after`."""
    return 1 - (1 - accuracy) * max(MIN_ERROR, 1 - after) / max(MIN_ERROR, 1 - before)


def _margin(done: float) -> float:
    """How far (0..1) below the best net a net may be expected to end, by the share of its training that is done.

    In the first half no training is given up: at a high learning rate a good net may be at chance after an epoch. Source: our
    choice, by replays of searches.
    """
    return 1.0 if done <= 0.5 else 0.02 + 0.1 * (1 - done)


def tie_break(spec, seed):
    """Give a key that orders nets at random, differently for each seed."""
    width = spec.width if isinstance(spec, ModelSpec) else spec.name
    return zlib.crc32(f"{seed} {spec.levels} {width}".encode()), spec.name
