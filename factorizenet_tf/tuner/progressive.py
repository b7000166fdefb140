"""Propose which nets to train next for a requirement, and say why: the progressive search, in NumPy alone.

The search goes up the uniform levels that fit, coarse to fine; then takes each stage alone as coarse as the budget allows,
with the others at their last level; then trains what promises most by a Gaussian process over the effects of levels in
stages (`surrogate`), and of nets with equal means the uncertain ones first. Nets are proposed in batches. A batch depends on
the results of the batches before it and on nothing else: trainings that end in any order lead to the same nets, and a search
is resumed from its results alone.

Source: the strategy of arXiv 2011.14586 as we understand its abstract; the rules are our choice.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..requirement import Requirement
from ..spec import ModelSpec
from .space import Space, macs
from .surrogate import AdditiveGP, CandidateSet, Posterior

__all__ = ["Proposal", "Result", "Search", "SearchState", "propose", "ranking", "stage_effects"]

BATCH = 3  # nets that are proposed together by the surrogate
MAX_COST_CHECKS = 24  # nets over budget that are looked at for one batch; each may be a measurement of seconds
UNIFORM_PATIENCE = 2  # uniform levels in a row, all worse than the best, after which finer ones are not trained
MIN_ERROR = 0.005  # stands for an error of 0, so that a curve that ends without errors still says how errors fall


@dataclass(frozen=True)
class Proposal:
    """A net to train.

    Args:
        spec: the net.
        reason: why it is tried.
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
        accuracy: int8 validation accuracy, 0..1; None: the training failed, as NaN says, too.
        curve: float validation accuracy after each epoch; NaN counts as 0.
        pruned: whether the training was stopped early as hopeless, so that `accuracy` is no final one.
    """

    accuracy: float | None
    curve: tuple[float, ...] = ()
    pruned: bool = False

    def __post_init__(self):
        if self.accuracy is not None and math.isnan(self.accuracy):
            object.__setattr__(self, "accuracy", None)
        object.__setattr__(self, "curve", tuple(0.0 if math.isnan(value) else value for value in self.curve))


@dataclass(frozen=True, eq=False)
class Search:
    """The question that a search answers, and what its calls of `propose` share to be fast.

    Args:
        space: the nets to choose from. All are held at once: half a million take 0.5 GB.
        requirement: the budgets and the floor.
        violation: says why a net is over a budget, or None where it fits.
        patience: batches by the surrogate without a better net after which the search ends. It ends before where no net
            is left for a batch, or MAX_COST_CHECKS nets in a row were over a measured budget.
        seed: decides between nets of equal cost; the same seed gives the same search.
        max_nets: nets to propose at most, None for no limit; no batch is begun once as many have results.
    """

    space: Space
    requirement: Requirement
    violation: Callable[[ModelSpec], str | None]
    patience: int = 3
    seed: int = 0
    max_nets: int | None = None
    _chosen: dict = field(default_factory=dict, init=False, repr=False)

    @functools.cached_property
    def candidates(self) -> CandidateSet:
        """The nets as arrays."""
        return CandidateSet(self.space)

    @functools.cached_property
    def surrogate(self) -> AdditiveGP:
        """The model of their accuracies."""
        return AdditiveGP(self.candidates, self.space.widths)


@dataclass
class SearchState:
    """How far a search is after some results.

    Args:
        search, results: as given to `propose`.
        proposals: every net proposed so far, by batch.
        pending: those of the last batch that have no result yet.
        best: the best net so far, or None.
        ranked: every net with a final accuracy, best first.
        steps: one line for each finished batch: its purpose and its outcome.
        rejected: nets that were looked at and not proposed, with the reason.
        over_budget: the nets that were looked at and do not fit, in that order (the values are None).
        finished: whether nothing is left to propose.
    """

    search: Search = field(repr=False, compare=False)
    results: Mapping[ModelSpec, Result] = field(repr=False, compare=False)
    proposals: list[Proposal] = field(default_factory=list)
    pending: list[Proposal] = field(default_factory=list)
    best: ModelSpec | None = None
    ranked: list[ModelSpec] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    rejected: dict[ModelSpec, str] = field(default_factory=dict)
    over_budget: dict[ModelSpec, None] = field(default_factory=dict)
    finished: bool = False

    @property
    def proposed(self) -> set[ModelSpec]:
        """The nets of all proposals."""
        return {proposal.spec for proposal in self.proposals}

    def reaches_floor(self, spec: ModelSpec) -> bool:
        """Tell whether there is a floor, and a trained net reaches it."""
        return _reaches_floor(self.search.requirement, self.results[spec])

    def macs_ceiling(self) -> float:
        """Give the MACs that a net must stay below to be worth a training: those of the best where it reaches the floor."""
        return macs(self.best) if self.best is not None and self.reaches_floor(self.best) else math.inf

    def fits(self, spec: ModelSpec) -> bool:
        """Tell whether a net is within all budgets, and keep the reason where it is not."""
        if macs(spec) >= self.macs_ceiling():
            return False
        reason = self.search.violation(spec)
        if reason is not None:
            self.over_budget[spec] = None
            self.rejected.setdefault(spec, reason)
        return reason is None

    def batch(self, nets: Iterator | Sequence) -> list[Proposal]:
        """Make proposals, the most MACs first, of (net, reason, parent); nets proposed before are left out."""
        proposed = self.proposed
        nets = [entry for entry in nets if entry[0] not in proposed]
        number = 1 + (self.proposals[-1].round if self.proposals else 0)
        threshold = self._threshold()
        nets.sort(key=lambda entry: (-macs(entry[0]), _tie_break(entry[0], self.search.seed)))
        return [Proposal(spec, reason, number, parent, threshold) for spec, reason, parent in nets]

    def _threshold(self) -> tuple[float, ...]:
        """By epoch the accuracy below which a training would end far below the best net, its errors falling as that one's."""
        if self.best is None:
            return ()
        result, spare = self.results[self.best], 0.0
        if self.reaches_floor(self.best):
            spare = max(0.0, result.accuracy - self.search.requirement.min_accuracy)
        highest = list(itertools.accumulate(result.curve, max))
        epochs = len(highest)
        needed = (
            accuracy_needed_at(highest, epoch, highest[-1] - spare - _margin(epoch / epochs))
            for epoch in range(1, epochs + 1)
        )
        return tuple(round(max(0.0, accuracy), 4) for accuracy in needed)

    def open(self, batch: list[Proposal]) -> None:
        """Take a batch in, of which some nets may have results."""
        self.proposals += batch
        for proposal in batch:  # a uniform level that was skipped may come back as a neighbour of another net
            self.rejected.pop(proposal.spec, None)
        self.pending = [proposal for proposal in batch if proposal.spec not in self.results]

    def rank(self) -> None:
        """Rank the proposed nets that have a result."""
        trained = {p.spec: self.results[p.spec] for p in self.proposals if p.spec in self.results}
        self.ranked = ranking(self.search.requirement, trained, self.search.seed)
        self.best = self.ranked[0] if self.ranked else None

    def close(self, purpose: str, batch: list[Proposal]) -> None:
        """Take the results of a finished batch in, and say what came of it."""
        former = self.best
        self.rank()
        outcome = "nothing finished" if self.best is None else "none is better"
        if self.best != former:
            outcome = f"best is {self.best.name} ({next(p.reason for p in batch if p.spec == self.best)})"
        trained = ", ".join(f"{p.spec.name} {self._outcome(p.spec)}" for p in batch)
        self.steps.append(f"round {batch[0].round}, {purpose}: {trained}; {outcome}")

    def _outcome(self, spec: ModelSpec) -> str:
        result = self.results[spec]
        if result.accuracy is None:
            return "failed"
        return f"given up after epoch {len(result.curve)}" if result.pruned else f"{100 * result.accuracy:.2f} %"


def propose(search: Search, results: Mapping[ModelSpec, Result]) -> SearchState:
    """Follow a search over the results that there are, to the nets to train next.

    Args:
        search: the question.
        results: of the nets trained so far; nets that were not proposed are ignored.

    Returns:
        The state, with `pending` the nets to train next; it is finished where there are none.
    """
    state = SearchState(search, results)
    for purpose, batch in _batches(state):
        if not batch:
            continue
        state.open(batch)
        if state.pending:
            state.rank()  # the batch may stay unfinished: max_nets
            return state
        state.close(purpose, batch)
        if search.max_nets is not None and len(state.proposals) >= search.max_nets:
            break
    state.finished = True
    return state


def ranking(requirement: Requirement, results: Mapping[ModelSpec, Result], seed: int = 0) -> list[ModelSpec]:
    """Sort the nets with a final accuracy, best first: those that reach the floor by few MACs, the others by accuracy."""

    def key(spec):
        accuracy, chance = results[spec].accuracy, _tie_break(spec, seed)
        if _reaches_floor(requirement, results[spec]):
            return True, -macs(spec), accuracy, chance
        return False, accuracy, -macs(spec), chance

    final = [spec for spec, result in results.items() if result.accuracy is not None and not result.pruned]
    return sorted(final, key=key, reverse=True)


def stage_effects(search: Search, results: Mapping[ModelSpec, Result], origin: ModelSpec) -> list[list[float | None]]:
    """Estimate how a net's accuracy would change with another level in one stage, from all results together.

    Args:
        search, results: as for `propose`.
        origin: the net; it has a final accuracy.

    Returns:
        For each stage a number for each level, in points: 0 at the origin's own, None where no net with a result has that
        level in that stage.
    """
    nets, accuracies = search.candidates, _percent(results, origin)
    posterior = search.surrogate.estimate({nets.index(spec): value for spec, value in accuracies.items()})
    change = posterior.mean - posterior.mean[nets.index(origin)]

    def effect(stage, level):
        if not any(spec.levels[stage] == level for spec in accuracies):
            return None
        return float(change[nets.index(search.space.changed(origin, stage, level))])

    lasts = search.space.uniform(origin.width)[-1].levels
    return [[effect(stage, level) for level in range(last + 1)] for stage, last in enumerate(lasts)]


def extrapolated_final_accuracy(curve: Sequence[float], epoch: int, accuracy: float) -> float:
    """Extrapolate a pruned training's final accuracy: its errors are to fall in proportion to those of a finished one.

    Args:
        curve: of the finished training, the highest accuracy (0..1) up to each epoch, to the last.
        epoch: at which the pruned one had `accuracy`, from 1.
        accuracy: 0..1.
    """
    return 1 - (1 - accuracy) * max(MIN_ERROR, 1 - curve[-1]) / max(MIN_ERROR, 1 - curve[epoch - 1])


def accuracy_needed_at(curve: Sequence[float], epoch: int, final: float) -> float:
    """Give the accuracy at an epoch from which `extrapolated_final_accuracy` is `final`."""
    return 1 - (1 - final) * max(MIN_ERROR, 1 - curve[epoch - 1]) / max(MIN_ERROR, 1 - curve[-1])


def _margin(done: float) -> float:
    """By how much (0..1) a net may be expected to end below the best one when its training is so far done.

    None is given up in the first half: at a high learning rate a good net may be at chance after an epoch. Source: our
    choice, by replays of searches.
    """
    return 1.0 if done <= 0.5 else 0.02 + 0.1 * (1 - done)


def _reaches_floor(requirement, result):
    return requirement.min_accuracy is not None and result.accuracy >= requirement.min_accuracy


def _tie_break(spec, seed):
    """Give a number that orders nets by chance, in another way for each seed."""
    return zlib.crc32(f"{seed} {spec.levels} {spec.width}".encode())


# The batches, each with its purpose


def _batches(state: SearchState) -> Iterator[tuple[str, list[Proposal]]]:
    yield from _uniform_levels(state)
    if state.best is None:
        return
    yield "each stage alone", state.batch(_one_stage_coarse(state))
    idle = 0
    while idle < state.search.patience:
        before = state.best
        batch = state.batch(_next_batch(state))
        if not batch:
            return
        yield "what promises most", batch
        idle = 0 if state.best != before else idle + 1


def _uniform_levels(state: SearchState) -> Iterator[tuple[str, list[Proposal]]]:
    """Go up the uniform levels, the two coarsest of each width that fit first; where none fits start elsewhere."""
    space = state.search.space
    levels = {width: [spec for spec in space.uniform(width) if state.fits(spec)] for width in space.widths}
    if not any(levels.values()):
        yield from _fallback_start(state)
        return
    done = dict.fromkeys(levels, 0)
    while True:
        batch = []
        for width, specs in levels.items():
            tried = specs[: done[width]]
            if tried and state.best not in (None, *tried[-UNIFORM_PATIENCE:]):
                continue
            count = 1 if tried else UNIFORM_PATIENCE
            parent = tried[-1] if tried and tried[-1] in state.ranked else None
            for spec in specs[done[width] : done[width] + count]:
                is_first = spec == specs[0]
                why = "the coarsest uniform level that fits" if is_first else "the next finer uniform level"
                batch.append((spec, why, parent))
            done[width] += count
        if not batch:
            break
        yield "up the uniform levels", state.batch(batch)
    for width, specs in levels.items():
        for spec in specs[done[width] :]:
            why = f"not trained: {UNIFORM_PATIENCE} levels before it were worse than the best"
            state.rejected.setdefault(spec, why)


def _fallback_start(state: SearchState) -> Iterator[tuple[str, list[Proposal]]]:
    """Start from the coarsest net that fits with one stage off a uniform level: two kinds of budget can leave no other."""
    budget = state.search.requirement.limits.get("macs", math.inf)
    specs = [spec for spec in _one_stage_off_uniform(state.search.space) if macs(spec) <= budget]
    specs.sort(key=lambda spec: (-macs(spec), _tie_break(spec, state.search.seed)))
    step, misses = math.ceil(len(specs) / MAX_COST_CHECKS), 0
    for spec in (spec for first in range(step) for spec in specs[first::step]):
        if state.fits(spec):
            misses = 0
            why = "no uniform level fits; the coarsest found that does, one stage at another level"
            yield "where no uniform level fits", state.batch([(spec, why, None)])
            if state.best is not None:  # else its training failed
                return
        else:
            misses += 1
        if misses == MAX_COST_CHECKS:
            return


def _one_stage_off_uniform(space: Space) -> list[ModelSpec]:
    """List, once each, the nets that differ from a uniform level in the level of one stage."""
    found = {}
    for width in space.widths:
        uniform = space.uniform(width)
        for origin, (stage, last) in itertools.product(uniform, enumerate(uniform[-1].levels)):
            changed = (space.changed(origin, stage, level) for level in range(last + 1))
            found |= dict.fromkeys(spec for spec in changed if spec not in uniform)
    return list(found)


def _one_stage_coarse(state: SearchState) -> Iterator[tuple[ModelSpec, str, ModelSpec | None]]:
    """For each stage give the net that has it as coarse as fits and the others at the last level."""
    space = state.search.space
    finest = space.uniform(state.best.width)[-1]
    for stage, last in enumerate(finest.levels):
        for level in range(last):
            spec = space.changed(finest, stage, level)
            if state.fits(spec):
                why = f"stage {stage + 1} as coarse as fits, the others at the last level"
                yield spec, why, _closest_trained(state, spec)
                break


def _next_batch(state: SearchState) -> list[tuple[ModelSpec, str, ModelSpec | None]]:
    """Choose the next nets by the surrogate, most promising first; the choice is kept for the next call of `propose`."""
    results = {spec: state.results[spec] for spec in state.proposed}
    key = tuple(sorted(results.items(), key=lambda item: (item[0].width, item[0].levels)))
    known = state.search._chosen
    if key not in known:
        before = len(state.over_budget)
        chosen = _chosen(state, dict(key))
        known[key] = chosen, list(state.over_budget)[before:]
    chosen, over_budget = known[key]
    for spec in over_budget:
        state.fits(spec)  # which keeps the reason
    return chosen


def _chosen(state, results):
    nets, surrogate = state.search.candidates, state.search.surrogate
    accuracies = _percent(results, state.best)
    posterior = surrogate.estimate({nets.index(spec): value for spec, value in accuracies.items()})
    limit = state.search.requirement.limits.get("macs", math.inf)
    open_nets = (nets.macs <= limit) & (nets.macs < state.macs_ceiling())
    for spec in results.keys() | state.over_budget.keys():
        open_nets[nets.index(spec)] = False
    fitting = {nets.index(spec): 1 for spec in results}
    too_costly = {nets.index(spec): -1 for spec in state.over_budget if macs(spec) <= limit}
    chosen, checks = [], 0
    while open_nets.any() and len(chosen) < BATCH and checks < MAX_COST_CHECKS:
        promise = np.where(open_nets, _acquisition(state, posterior), -np.inf)
        if too_costly:  # what probably is over a measured budget comes last: costs are nearly sums over stages, too
            promise -= 1000 * (surrogate.mean(fitting | too_costly) < 0)
        index = _argmax_with_ties(state, promise)
        open_nets[index] = False
        spec = nets.net(index)
        if not state.fits(spec):
            too_costly[index] = -1
            checks += 1
            continue
        fitting[index] = 1
        parent = _closest_trained(state, spec)
        chosen.append((spec, _reason(spec, parent, posterior, index), parent))
        posterior.believe(index)
    return chosen


def _percent(results: Mapping[ModelSpec, Result], best: ModelSpec) -> dict[ModelSpec, float]:
    """Give the accuracies in percent; a pruned training counts as far behind the best net as extrapolated at its end."""
    top, found = results[best], {}
    highest = list(itertools.accumulate(top.curve, max))
    for spec, result in results.items():
        if result.pruned and result.curve and highest:
            epoch = min(len(result.curve), len(highest))  # the best net's own training may have been stopped early
            final = extrapolated_final_accuracy(highest, epoch, max(result.curve[:epoch]))
            behind = highest[-1] - final
            found[spec] = 100 * (top.accuracy - behind)
        elif result.accuracy is not None and not result.pruned:
            found[spec] = 100 * result.accuracy
    return found


def _acquisition(state: SearchState, posterior: Posterior) -> np.ndarray:
    """Score every candidate: the accuracy that may be hoped for or, once the floor is reached, the MACs likely saved."""
    if not state.reaches_floor(state.best):
        return posterior.mean + posterior.deviation
    above = (posterior.mean - 100 * state.search.requirement.min_accuracy) / posterior.deviation
    saved = 1 - state.search.candidates.macs / macs(state.best)  # nets above the ceiling are not looked at
    # As a logarithm, or nets that all are far below the floor would be equals.
    return np.log(np.maximum(saved, 1e-9)) - np.logaddexp(0, -1.7 * above)  # nearly the normal distribution


def _argmax_with_ties(state: SearchState, promise: np.ndarray) -> int:
    """Give the index of the highest score; chance decides among equals, and not the last bits of a sum."""
    equals = np.flatnonzero(promise >= promise.max() - 1e-9)
    return int(min(equals, key=lambda index: _tie_break(state.search.candidates.net(index), state.search.seed)))


def _closest_trained(state: SearchState, spec: ModelSpec) -> ModelSpec | None:
    """Give the trained net of equal width that differs in the fewest levels, the best of several."""
    of_width = [other for other in state.ranked if other.width == spec.width]
    return min(of_width, key=lambda other: sum(a != b for a, b in zip(other.levels, spec.levels)), default=None)


def _reason(spec: ModelSpec, parent: ModelSpec | None, posterior: Posterior, index: int) -> str:
    expected = f"{posterior.mean[index]:.1f} % expected, give or take {posterior.deviation[index]:.1f}"
    if parent is None:
        return f"width {spec.width}: {expected}"
    changes = [
        f"stage {number} {'coarser' if level < former else 'finer'}"
        for number, (level, former) in enumerate(zip(spec.levels, parent.levels), 1)
        if level != former
    ]
    return f"{parent.name} with {' and '.join(changes)}: {expected}"
