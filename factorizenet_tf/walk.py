"""The walk: which nets to train for a requirement, in which order, and why. Data and functions, no TensorFlow.

It goes up the uniform levels, coarse to fine, over those that fit; looks at each stage alone, as coarse as the budget
allows with the others at the last level; then refines greedily: in each round the nets of which the effects of levels
and stages, estimated from all that was trained (`effects`), promise most. Nets are proposed in
rounds. What is in a round depends on the results of the rounds before it and on nothing else, so any number of workers
that end in any order walk the same way, and a walk is resumed from its results alone.

Source: the strategy of arXiv 2011.14586 as we understand its abstract; the rules are our choice.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from .cost import cost_rows, count_macs
from .effects import Candidates, Effects, Estimate
from .requirement import Requirement
from .spec import ModelSpec, max_level

__all__ = ["Proposal", "Result", "Space", "Walk", "check_budget", "macs", "ranking", "stage_effects", "walk"]

ROUND = 3  # nets a round of refinement
LOOKS = 24  # nets a round whose costs are looked at in vain before it ends; each may be a measurement of seconds
CLIMB = 2  # uniform levels in a row, all worse than the best, after which finer ones are not trained


@dataclass(frozen=True)
class Space:
    """The nets to choose from: every level in every stage, at each width.

    Args:
        spec: gives input shape, classes and stages.
        widths: of the stem; a single one, unless several are asked for.
    """

    spec: ModelSpec
    widths: tuple[int, ...]

    def net(self, level: int | tuple[int, ...], width: int | None = None) -> ModelSpec:
        """The net of a level, or of one level a stage; None: the first width."""
        return _net(self, level, self.widths[0] if width is None else width)

    def uniform(self, width: int) -> list[ModelSpec]:
        """The uniform levels of a width, coarse to fine."""
        return list(_uniform(self, width))

    def nets(self) -> Iterator[ModelSpec]:
        """Every net once."""
        for width in self.widths:
            last = self.net(max_level(self.net(0, width)), width).levels
            for levels in itertools.product(*(range(k + 1) for k in last)):
                yield self.net(levels, width)

    def smallest(self) -> ModelSpec:
        """The net with the fewest MACs: the last level of the least width."""
        return self.uniform(min(self.widths))[-1]


@functools.lru_cache(maxsize=100_000)
def _net(space, level, width):
    base = space.spec
    return ModelSpec(level, width=width, input_shape=base.input_shape, num_classes=base.num_classes, stages=base.stages)


@functools.lru_cache(maxsize=1024)
def _uniform(space, width):
    return tuple(_net(space, level, width) for level in range(max_level(_net(space, 0, width)) + 1))


macs = functools.lru_cache(maxsize=100_000)(count_macs)


def check_budget(space: Space, requirement: Requirement) -> None:
    """Find out from the specs alone where nothing can fit. Raises ValueError, which names the smallest net."""
    smallest = space.smallest()
    limits = requirement.limits
    if macs(smallest) > limits.get("macs", math.inf):
        raise ValueError(
            f"max_macs is {limits['macs']:,}; the smallest net, {smallest.name}, has {macs(smallest):,} MACs"
        )
    weight_bytes = sum(row.weight_bytes for row in cost_rows(smallest))  # the file holds them all, and more
    if weight_bytes > limits.get("size_bytes", math.inf):
        raise ValueError(
            f"max_size_bytes is {limits['size_bytes']:,}; the weights of the smallest net, {smallest.name}, alone have {weight_bytes:,}"
        )
    height, width, channels = space.spec.input_shape
    stem_bytes = height * width * (channels + min(space.widths))  # the stem's input and output are held at once
    if stem_bytes > limits.get("ram_bytes", math.inf):
        raise ValueError(
            f"max_ram_bytes is {limits['ram_bytes']:,}; the stem of the smallest net, {smallest.name}, alone needs {stem_bytes:,}"
        )


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


def walk(
    space: Space,
    requirement: Requirement,
    results: Mapping[ModelSpec, Result],
    *,
    excess: Callable[[ModelSpec], str | None],
    patience: int = 3,
    seed: int = 0,
    memory: dict | None = None,
) -> Walk:
    """Walk from the start over the results that there are.

    Args:
        space, requirement: what is asked for.
        results: of nets trained so far; others are ignored.
        excess: why a net is over a budget, or None where it fits.
        patience: rounds of refinement without a better net after which the walk ends.
        seed: decides between nets of equal cost; the same seed walks the same way.
        memory: kept between calls for the same space and budgets it saves their time; what is found is the same.

    Returns:
        The walk, its `pending` the nets to train next.
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
            return state.walk
        state.close(why, batch)
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


def stage_effects(space: Space, results: Mapping[ModelSpec, Result], origin: ModelSpec) -> list[list[float]]:
    """How accuracy would change were one stage of a net at another level, as all results together suggest.

    Args:
        space, results: of the walk.
        origin: the net; it has an accuracy.

    Returns:
        For each stage a number for each level, in points; 0 at the origin's own.
    """
    nets, effects = _model(space, {})
    estimate = effects.estimate({nets.place(spec): value for spec, value in _percent(results, origin).items()})
    expected = estimate.mean - estimate.mean[nets.place(origin)]
    last = space.uniform(origin.width)[-1].levels
    return [
        [
            float(expected[nets.place(space.net((*origin.levels[:i], k, *origin.levels[i + 1 :]), origin.width))])
            for k in range(last[i] + 1)
        ]
        for i in range(len(last))
    ]


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
    over: set = field(default_factory=set)
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
            self.over.add(spec)
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
        """The best net's curve, lowered by the margin and, where it is above the floor, by what it has to spare."""
        best = self.walk.best
        if best is None:
            return ()
        result = self.results[best]
        spare = max(0.0, result.accuracy - self.requirement.min_accuracy) if self.reaches(best) else 0.0
        epochs = len(result.curve)
        running = itertools.accumulate(result.curve, max)
        return tuple(round(max(0.0, v - spare - margin(e / epochs)), 4) for e, v in enumerate(running, 1))

    def close(self, why, batch):
        """Take a finished round's results in."""
        before = self.walk.best
        proposed = {p.spec: self.results[p.spec] for p in self.walk.proposals}
        ranked = self.walk.ranked = ranking(self.requirement, proposed, self.seed)
        best = self.walk.best = ranked[0] if ranked else None
        trained = ", ".join(f"{p.spec.name} {self.told(p.spec)}" for p in batch)
        outcome = "nothing finished" if best is None else "none is better"
        if best != before:
            outcome = f"best is {best.name} ({next(p.reason for p in batch if p.spec == best)})"
        self.walk.steps.append(f"round {batch[0].round}, {why}: {trained}; {outcome}")

    def told(self, spec) -> str:
        result = self.results[spec]
        if result.accuracy is None:
            return "failed"
        return f"given up after epoch {len(result.curve)}" if result.pruned else f"{100 * result.accuracy:.2f} %"


def margin(done: float) -> float:
    """By how much (0..1) a curve may lie below the best net's after this share of the epochs and still go on.

    None is given up in the first quarter. Source: our choice, by replays of walks.
    """
    return 1.0 if done < 0.25 else 0.025 + 0.1 * (1 - done)


def _batches(state: _State) -> Iterator[tuple[str, list[Proposal]]]:
    yield from _climb(state)
    if state.walk.best is None:
        return
    yield "each stage alone", state.batch(_alone(state))
    idle = 0
    while idle < state.patience:
        before = state.walk.best
        batch = state.batch(_promising(state))
        if not batch:
            return
        yield "what promises most", batch
        idle = 0 if state.walk.best != before else idle + 1


def _alone(state: _State) -> Iterator[tuple[ModelSpec, str, ModelSpec | None]]:
    """For each stage the net that has it as coarse as fits, the others at the last level."""
    width = state.walk.best.width
    last = state.space.uniform(width)[-1].levels
    for stage in range(len(last)):
        for level in range(last[stage]):
            spec = state.space.net(tuple(level if i == stage else k for i, k in enumerate(last)), width)
            if state.fits(spec):
                yield spec, f"stage {stage + 1} as coarse as fits, the others at the last level", _parent(state, spec)
                break


def _promising(state: _State) -> list[tuple[ModelSpec, str, ModelSpec | None]]:
    """The next nets to train, most promising first: what the effects estimated so far expect most of."""
    key = tuple(
        (spec, state.results[spec]) for spec in sorted(state.proposed, key=lambda spec: (spec.width, spec.levels))
    )
    if key not in state.memory:
        before = set(state.over)
        found = _chosen(state)
        state.memory[key] = found, state.over - before
    found, over = state.memory[key]
    for spec in over:
        state.fits(spec)  # which keeps the reason
    return found


def _chosen(state):
    nets, effects = _model(state.space, state.memory)
    results = {spec: state.results[spec] for spec in state.proposed}
    known = _percent(results, state.walk.best)
    estimate = effects.estimate({nets.place(spec): value for spec, value in known.items()})
    limit = state.requirement.limits.get("macs", math.inf)
    left = (nets.macs <= limit) & (nets.macs < state.ceiling())
    for spec in state.proposed | state.over:
        left[nets.place(spec)] = False
    fitting = {nets.place(spec): 1 for spec in state.proposed}
    measured = {nets.place(spec): -1 for spec in state.over if macs(spec) <= limit}
    found, looks = [], 0
    while left.any() and len(found) < ROUND and looks < LOOKS:
        promise = np.where(left, _promise(state, nets, estimate), -np.inf)
        if measured:  # what costs probably too much comes last: costs are nearly sums over stages, too
            promise -= 1000 * (effects.estimate(fitting | measured).mean < 0)
        place = _most(state, nets, promise)
        left[place] = False
        spec = nets.net(place)
        if not state.fits(spec):
            measured[place] = -1
            looks += 1
            continue
        fitting[place] = 1
        found.append((spec, _reason(state, spec, estimate, place), _parent(state, spec)))
        estimate.suppose(place)
    return found


def _model(space: Space, memory: dict) -> tuple[Candidates, Effects]:
    if space not in memory:
        nets = Candidates(space)
        memory[space] = nets, Effects(nets, space.widths)
    return memory[space]


def _percent(results: Mapping[ModelSpec, Result], best: ModelSpec) -> dict[ModelSpec, float]:
    """The accuracies there are; a training given up counts as if it had stayed as far behind the best one as it was."""
    top, found = results[best], {}
    for spec, result in results.items():
        if result.pruned and result.curve and top.curve:
            found[spec] = 100 * (top.accuracy - max(top.curve[: len(result.curve)]) + max(result.curve))
        elif result.accuracy is not None and not result.pruned:
            found[spec] = 100 * result.accuracy
    return found


def _promise(state, nets: Candidates, estimate: Estimate) -> np.ndarray:
    """What is to be as high as possible: the accuracy that may be hoped for or, above the floor, the MACs saved."""
    best = state.walk.best
    if not state.reaches(best):
        return estimate.mean + estimate.deviation
    above = (estimate.mean - 100 * state.requirement.min_accuracy) / estimate.deviation
    return (1 - nets.macs / macs(best)) / (1 + np.exp(np.clip(-1.7 * above, -50, 50)))  # nearly the normal distribution


def _most(state, nets: Candidates, promise: np.ndarray) -> int:
    """Where the most is; among equals chance decides, and not the last bits of a sum."""
    equals = np.flatnonzero(promise >= promise.max() - 1e-9)
    return int(min(equals, key=lambda place: state.chance(nets.net(place))))


def _parent(state, spec) -> ModelSpec | None:
    """The net of an earlier round and equal width with the fewest other levels, of those the best."""
    alike = [other for other in state.walk.ranked if other.width == spec.width]
    return min(alike, key=lambda other: sum(a != b for a, b in zip(other.levels, spec.levels)), default=None)


def _reason(state, spec, estimate: Estimate, place: int) -> str:
    expected = f"{estimate.mean[place]:.1f} % expected, give or take {estimate.deviation[place]:.1f}"
    parent = _parent(state, spec)
    if parent is None:
        return f"width {spec.width}: {expected}"
    stages = [
        f"stage {number} {'coarser' if now < then else 'finer'}"
        for number, (now, then) in enumerate(zip(spec.levels, parent.levels), 1)
        if now != then
    ]
    return f"{parent.name} with {' and '.join(stages)}: {expected}"


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
    for spec in specs[:: math.ceil(len(specs) / LOOKS) or 1]:
        if state.fits(spec):
            why = "no uniform level fits; the coarsest found that does, one stage at another level"
            yield "where no uniform level fits", state.batch([(spec, why, None)])
            return


def _mixed(space: Space) -> list[ModelSpec]:
    """Every net once that one stage alone keeps from being of a uniform level."""
    found = {}
    for width in space.widths:
        uniform = space.uniform(width)
        for origin, stage in itertools.product(uniform, range(len(space.spec.stages))):
            for level in range(uniform[-1].levels[stage] + 1):
                spec = space.net(tuple(level if i == stage else k for i, k in enumerate(origin.levels)), width)
                if spec not in uniform:
                    found[spec] = None
    return list(found)
