"""The walk: which nets to train for a requirement, in which order, and why. Data and functions, no TensorFlow.

It goes up the uniform levels, coarse to fine, over those that fit; looks at each stage alone, as coarse as the budget
allows with the others at the last level; then refines: in each round the nets that promise most by the effects of levels
in stages, estimated from all that was trained (`refine`, `effects`), the uncertain ones of equal mean first. Nets are
proposed in rounds. What is in a round depends on the results of the rounds before it and on nothing else, so any number
of workers that end in any order walk the same way, and a walk is resumed from its results alone.

Source: the strategy of arXiv 2011.14586 as we understand its abstract; the rules are our choice.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..requirement import Requirement
from ..spec import ModelSpec
from .space import Space, macs
from .surrogate import Candidates, Effects, Estimate

__all__ = [
    "LOOKS",
    "Proposal",
    "Result",
    "Walk",
    "after",
    "before",
    "model",
    "nearest",
    "promising",
    "ranking",
    "stage_effects",
    "walk",
]

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


ROUND = 3  # nets a round
LOOKS = 24  # nets over budget that are looked at for a round or a start; each may be a measurement of seconds


def stage_effects(
    space: Space, results: Mapping[ModelSpec, Result], origin: ModelSpec, memory: dict | None = None
) -> list[list[float]]:
    """How accuracy would change were one stage of a net at another level, as all results together suggest.

    Args:
        space, results: of the walk.
        origin: the net; it has an accuracy.
        memory: the walk's, which saves time.

    Returns:
        For each stage a number for each level, in points; 0 at the origin's own.
    """
    nets, effects = model(space, {} if memory is None else memory)
    estimate = effects.estimate({nets.place(spec): value for spec, value in _percent(results, origin).items()})
    expected = estimate.mean - estimate.mean[nets.place(origin)]
    return [
        [float(expected[nets.place(space.changed(origin, stage, level))]) for level in range(last + 1)]
        for stage, last in enumerate(space.uniform(origin.width)[-1].levels)
    ]


def promising(state) -> list[tuple[ModelSpec, str, ModelSpec | None]]:
    """The next nets to train, most promising first: what the effects estimated so far expect most of."""
    key = tuple(
        (spec, state.results[spec]) for spec in sorted(state.proposed, key=lambda spec: (spec.width, spec.levels))
    )
    if key not in state.memory:
        before = len(state.over)
        found = _chosen(state, dict(key))
        state.memory[key] = found, list(state.over)[before:]
    found, over = state.memory[key]
    for spec in over:
        state.fits(spec)  # which keeps the reason
    return found


def _chosen(state, results):
    nets, effects = model(state.space, state.memory)
    known = _percent(results, state.walk.best)
    estimate = effects.estimate({nets.place(spec): value for spec, value in known.items()})
    limit = state.requirement.limits.get("macs", math.inf)
    left = (nets.macs <= limit) & (nets.macs < state.ceiling())
    for spec in state.proposed | state.over.keys():
        left[nets.place(spec)] = False
    fitting = {nets.place(spec): 1 for spec in results}
    measured = {nets.place(spec): -1 for spec in state.over if macs(spec) <= limit}
    found, looks = [], 0
    while left.any() and len(found) < ROUND and looks < LOOKS:
        promise = np.where(left, _promise(state, nets, estimate), -np.inf)
        if measured:  # what costs probably too much comes last: costs are nearly sums over stages, too
            promise -= 1000 * (effects.mean(fitting | measured) < 0)
        place = _most(state, nets, promise)
        left[place] = False
        spec = nets.net(place)
        if not state.fits(spec):
            measured[place] = -1
            looks += 1
            continue
        fitting[place] = 1
        parent = nearest(state, spec)
        found.append((spec, _reason(spec, parent, estimate, place), parent))
        estimate.suppose(place)
    return found


def model(space: Space, memory: dict) -> tuple[Candidates, Effects]:
    """The nets of a space as arrays and what estimates their accuracy, made once and kept in `memory`."""
    if space not in memory:
        nets = Candidates(space)
        memory[space] = nets, Effects(nets, space.widths)
    return memory[space]


def _percent(results: Mapping[ModelSpec, Result], best: ModelSpec) -> dict[ModelSpec, float]:
    """The accuracies there are; of a training given up where it would have ended, had its errors fallen as the best's."""
    top, found = results[best], {}
    running = list(itertools.accumulate(top.curve, max))
    for spec, result in results.items():
        if result.pruned and result.curve and running:
            epoch = min(len(result.curve), len(running))  # the best's own training may have been stopped early
            behind = running[-1] - after(running, epoch, max(result.curve[:epoch]))
            found[spec] = 100 * (top.accuracy - behind)
        elif result.accuracy is not None and not result.pruned:
            found[spec] = 100 * result.accuracy
    return found


def _promise(state, nets: Candidates, estimate: Estimate) -> np.ndarray:
    """What is to be as high as possible: the accuracy that may be hoped for or, once the floor is reached, the MACs saved."""
    best = state.walk.best
    if not state.reaches(best):
        return estimate.mean + estimate.deviation
    above = (estimate.mean - 100 * state.requirement.min_accuracy) / estimate.deviation
    saved = 1 - nets.macs / macs(best)  # above the ceiling there is none, and nothing is looked at
    # As a logarithm, or nets that all are far below the floor would be equals.
    return np.log(np.maximum(saved, 1e-9)) - np.logaddexp(0, -1.7 * above)  # nearly the normal distribution


def _most(state, nets: Candidates, promise: np.ndarray) -> int:
    """Where the most is; among equals chance decides, and not the last bits of a sum."""
    equals = np.flatnonzero(promise >= promise.max() - 1e-9)
    return int(min(equals, key=lambda place: state.chance(nets.net(place))))


def nearest(state, spec) -> ModelSpec | None:
    """The net of an earlier round and equal width with the fewest other levels, of those the best."""
    alike = [other for other in state.walk.ranked if other.width == spec.width]
    return min(alike, key=lambda other: sum(a != b for a, b in zip(other.levels, spec.levels)), default=None)


def _reason(spec: ModelSpec, parent: ModelSpec | None, estimate: Estimate, place: int) -> str:
    expected = f"{estimate.mean[place]:.1f} % expected, give or take {estimate.deviation[place]:.1f}"
    if parent is None:
        return f"width {spec.width}: {expected}"
    stages = [
        f"stage {number} {'coarser' if now < then else 'finer'}"
        for number, (now, then) in enumerate(zip(spec.levels, parent.levels), 1)
        if now != then
    ]
    return f"{parent.name} with {' and '.join(stages)}: {expected}"


CLIMB = 2  # uniform levels in a row, all worse than the best, after which finer ones are not trained


def walk(
    space: Space,
    requirement: Requirement,
    results: Mapping[ModelSpec, Result],
    *,
    excess: Callable[[ModelSpec], str | None],
    patience: int = 3,
    seed: int = 0,
    most: int | None = None,
    memory: dict | None = None,
) -> Walk:
    """Walk from the start over the results that there are.

    Args:
        space, requirement: what is asked for.
        results: of nets trained so far; others are ignored.
        excess: why a net is over a budget, or None where it fits.
        patience: rounds of refinement without a better net after which the walk ends; it ends before where a round
            has no net, everything being trained or as many nets as are looked at for one over a measured budget.
        seed: decides between nets of equal cost; the same seed walks the same way.
        most: nets to propose; once so many have results no further round is thought of. None: no limit.
        memory: kept between calls that differ in their results alone it saves their time; what is found is the same.

    Returns:
        The walk, its `pending` the nets to train next. All nets of a space are held at once: half a million take
        0.5 GB.
    """
    state = _State(Walk(), space, requirement, results, excess, patience, seed, {} if memory is None else memory)
    for why, batch in _batches(state):
        if not batch:
            continue
        state.proposed.update(p.spec for p in batch)
        for proposal in batch:  # a level left out before may come back as a neighbour
            state.walk.rejected.pop(proposal.spec, None)
        state.walk.proposals += batch
        state.walk.pending = [p for p in batch if p.spec not in results]
        if state.walk.pending:
            state.rank()  # the last round may stay as it is: max_trials
            return state.walk
        state.close(why, batch)
        if most is not None and len(state.walk.proposals) >= most:
            break
    state.walk.finished = True
    return state.walk


def ranking(requirement: Requirement, results: Mapping[ModelSpec, Result], seed: int = 0) -> list[ModelSpec]:
    """The nets with a final accuracy, best first: those that reach the floor by few MACs, else by accuracy."""

    def key(spec):
        accuracy, chance = results[spec].accuracy, _chance(spec, seed)
        if _reaches(requirement, results[spec]):
            return True, -macs(spec), accuracy, chance
        return False, accuracy, -macs(spec), chance

    final = [spec for spec, result in results.items() if result.accuracy is not None and not result.pruned]
    return sorted(final, key=key, reverse=True)


def _reaches(requirement, result):
    return requirement.min_accuracy is not None and result.accuracy >= requirement.min_accuracy


def _chance(spec, seed):
    return zlib.crc32(f"{seed} {spec.levels} {spec.width}".encode())


@dataclass
class _State:
    walk: Walk
    space: Space
    requirement: Requirement
    results: Mapping[ModelSpec, Result]
    excess: Callable
    patience: int
    seed: int
    memory: dict
    proposed: set = field(default_factory=set)
    over: dict = field(default_factory=dict)  # nets, in the order in which they were looked at
    round: int = 0

    def chance(self, spec) -> int:
        """A number that stands for chance: another order for another seed."""
        return _chance(spec, self.seed)

    def reaches(self, spec) -> bool:
        """Whether there is a floor, and the net reaches it."""
        return _reaches(self.requirement, self.results[spec])

    def ceiling(self) -> float:
        """MACs that a net must stay below to be worth a training: those of the best where that reaches the floor."""
        best = self.walk.best
        return macs(best) if best is not None and self.reaches(best) else math.inf

    def fits(self, spec) -> bool:
        """Whether a net is in budget; keeps the reason where not."""
        if macs(spec) >= self.ceiling():
            return False
        reason = self.excess(spec)
        if reason is not None:
            self.over[spec] = None
            self.walk.rejected.setdefault(spec, reason)
        return reason is None

    def batch(self, found: list[tuple[ModelSpec, str, ModelSpec | None]]) -> list[Proposal]:
        """A new round of proposals from (net, reason, parent), the most MACs first."""
        found = [one for one in found if one[0] not in self.proposed]
        if found:
            self.round += 1
        threshold = self.threshold()
        order = sorted(found, key=lambda one: (-macs(one[0]), self.chance(one[0])))
        return [Proposal(spec, reason, self.round, parent, threshold) for spec, reason, parent in order]

    def threshold(self) -> tuple[float, ...]:
        """By epoch what a curve must reach: less leads, as the best net's curve went on, to a net that is far worse."""
        best = self.walk.best
        if best is None:
            return ()
        result = self.results[best]
        spare = max(0.0, result.accuracy - self.requirement.min_accuracy) if self.reaches(best) else 0.0
        running = list(itertools.accumulate(result.curve, max))
        return tuple(
            round(max(0.0, before(running, epoch, running[-1] - spare - margin(epoch / len(running)))), 4)
            for epoch in range(1, len(running) + 1)
        )

    def rank(self):
        """Say what is best of what has a result."""
        trained = {p.spec: self.results[p.spec] for p in self.walk.proposals if p.spec in self.results}
        ranked = self.walk.ranked = ranking(self.requirement, trained, self.seed)
        self.walk.best = ranked[0] if ranked else None

    def close(self, why, batch):
        """Take a finished round's results in."""
        former = self.walk.best
        self.rank()
        best = self.walk.best
        trained = ", ".join(f"{p.spec.name} {self.told(p.spec)}" for p in batch)
        outcome = "nothing finished" if best is None else "none is better"
        if best != former:
            outcome = f"best is {best.name} ({next(p.reason for p in batch if p.spec == best)})"
        self.walk.steps.append(f"round {batch[0].round}, {why}: {trained}; {outcome}")

    def told(self, spec) -> str:
        result = self.results[spec]
        if result.accuracy is None:
            return "failed"
        return f"given up after epoch {len(result.curve)}" if result.pruned else f"{100 * result.accuracy:.2f} %"


def margin(done: float) -> float:
    """By how much (0..1) a net may be expected to end below the best one and its training, so far done, still go on.

    None is given up in the first half: at a high learning rate a good net may be at chance after an epoch. Source: our
    choice, by replays of walks.
    """
    return 1.0 if done <= 0.5 else 0.02 + 0.1 * (1 - done)


def _batches(state: _State) -> Iterator[tuple[str, list[Proposal]]]:
    yield from _climb(state)
    if state.walk.best is None:
        return
    yield "each stage alone", state.batch(_alone(state))
    idle = 0
    while idle < state.patience:
        before = state.walk.best
        batch = state.batch(promising(state))
        if not batch:
            return
        yield "what promises most", batch
        idle = 0 if state.walk.best != before else idle + 1


def _alone(state: _State) -> Iterator[tuple[ModelSpec, str, ModelSpec | None]]:
    """For each stage the net that has it as coarse as fits, the others at the last level."""
    width = state.walk.best.width
    finest = state.space.uniform(width)[-1]
    for stage, last in enumerate(finest.levels):
        for level in range(last):
            spec = state.space.changed(finest, stage, level)
            if state.fits(spec):
                yield spec, f"stage {stage + 1} as coarse as fits, the others at the last level", nearest(state, spec)
                break


def _climb(state: _State) -> Iterator[tuple[str, list[Proposal]]]:
    """Uniform levels, coarse to fine, the two coarsest of each width that fit first; where none fits another start."""
    levels = {width: [s for s in state.space.uniform(width) if state.fits(s)] for width in state.space.widths}
    if not any(levels.values()):
        yield from _mixed_start(state)
        return
    done = dict.fromkeys(levels, 0)
    while True:
        batch = []
        for width, specs in levels.items():
            tried = specs[: done[width]]
            if tried and state.walk.best not in (None, *tried[-CLIMB:]):
                continue
            count = 1 if tried else CLIMB
            for spec in specs[done[width] : done[width] + count]:
                index = specs.index(spec)
                parent = tried[-1] if tried else None
                parent = parent if parent in state.walk.ranked else None
                why = "the coarsest uniform level that fits" if index == 0 else "the next finer uniform level"
                batch.append((spec, why, parent))
            done[width] += count
        if not batch:
            break
        yield "up the uniform levels", state.batch(batch)
    for width, specs in levels.items():
        for spec in specs[done[width] :]:
            state.walk.rejected.setdefault(spec, f"not trained: {CLIMB} levels before it were worse than the best")


def _mixed_start(state: _State) -> Iterator[tuple[str, list[Proposal]]]:
    """The coarsest net that fits of those with one stage at another level: budgets of two kinds can leave no other."""
    budget = state.requirement.limits.get("macs", math.inf)
    specs = sorted((s for s in _mixed(state.space) if macs(s) <= budget), key=lambda s: (-macs(s), state.chance(s)))
    step, misses = math.ceil(len(specs) / LOOKS), 0
    for spec in (spec for first in range(step) for spec in specs[first::step]):
        if state.fits(spec):
            misses = 0
            why = "no uniform level fits; the coarsest found that does, one stage at another level"
            yield "where no uniform level fits", state.batch([(spec, why, None)])
            if state.walk.best is not None:  # else its training failed
                return
        else:
            misses += 1
        if misses == LOOKS:
            return


def _mixed(space: Space) -> list[ModelSpec]:
    """Every net once that one stage alone keeps from being of a uniform level."""
    found = {}
    for width in space.widths:
        uniform = space.uniform(width)
        for origin, (stage, last) in itertools.product(uniform, enumerate(uniform[-1].levels)):
            for level in range(last + 1):
                spec = space.changed(origin, stage, level)
                if spec not in uniform:
                    found[spec] = None
    return list(found)
