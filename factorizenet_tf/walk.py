"""The walk: which nets to train for a requirement, in which order, and why. Data and functions, no TensorFlow.

It goes up the uniform levels, coarse to fine, over those that fit, then from the best net stage by stage: a stage takes
a coarser level and, where that goes over budget, another stage pays for it with a finer one; what is left of the budget
is used up. Nets are proposed in
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

from .cost import cost_rows, count_macs
from .moves import Move, cheaper, mixed, near, trades
from .requirement import Requirement
from .spec import ModelSpec, max_level

__all__ = ["Proposal", "Result", "Space", "Walk", "check_budget", "macs", "ranking", "walk"]

PROBES = 24  # nets whose costs are looked at where no uniform level fits; each may be a measurement of seconds
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
        patience: rounds without a better net after which the walk ends.
        seed: decides between nets of equal cost; the same seed walks the same way.
        memory: kept between calls for the same space and budgets it saves their time; what is found is the same.

    Returns:
        The walk, its `pending` the nets to train next.
    """
    state = _State(Walk(), space, requirement, results, excess, patience, seed, {} if memory is None else memory)
    for why, batch in _batches(state):
        batch = [p for p in batch if p.spec not in state.proposed]
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
            self.walk.rejected.setdefault(spec, reason)
        return reason is None

    def moves(self, origin, far) -> list[Move]:
        """Where a net leads: to fewer MACs where it reaches the floor, else by trades (far) or to what is near."""
        kind = "cheaper" if self.reaches(origin) else "trades" if far else "near"
        key = origin, kind, self.ceiling()
        if key not in self.memory:
            before = set(self.walk.rejected)
            if kind == "near":
                found = near(self.space, origin, self.fits)
            else:
                found = (cheaper if kind == "cheaper" else trades)(self.space, origin, self.fits, macs)
            rejected = {spec: self.walk.rejected[spec] for spec in self.walk.rejected.keys() - before}
            self.memory[key] = found, rejected
        found, rejected = self.memory[key]
        for spec, reason in rejected.items():
            self.walk.rejected.setdefault(spec, reason)
        return found

    def batch(self, moves_: list[Move]) -> list[Proposal]:
        """A new round of proposals, the most MACs first."""
        if moves_:
            self.round += 1
        threshold = self.threshold()
        order = sorted(moves_, key=lambda move: (-macs(move.spec), self.chance(move.spec)))
        return [Proposal(m.spec, m.reason, self.round, m.parent, threshold) for m in order]

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

    None is given up in the first fifth. Source: our choice, by replays of walks.
    """
    return 1.0 if done < 0.2 else 0.02 + 0.06 * (1 - done) ** 1.5


def _batches(state: _State) -> Iterator[tuple[str, list[Proposal]]]:
    yield from _climb(state)
    best = state.walk.best
    if best is None:
        return
    looked, idle = set(), 0
    while idle <= state.patience:
        origin, far = next(((s, f) for s, f in _origins(state) if (s, f) not in looked), (None, True))
        if origin is None:
            return
        looked.add((origin, far))
        found = state.moves(origin, far)
        batch = state.batch([move for move in found if move.spec not in state.proposed])
        if not batch:
            continue
        before = state.walk.best
        yield f"from {origin.name}", batch
        idle = 0 if state.walk.best != before else idle + 1


def _origins(state: _State) -> Iterator[tuple[ModelSpec, bool]]:
    """Where to go from, best first: from a net by trades, then to what is near it, then from the next best."""
    for spec in state.walk.ranked:
        yield spec, True
        yield spec, False


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
                batch.append(Move(spec, why, parent))
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
    specs = sorted((s for s in mixed(state.space) if macs(s) <= budget), key=lambda s: (-macs(s), state.chance(s)))
    for spec in specs[:: math.ceil(len(specs) / PROBES) or 1]:
        if state.fits(spec):
            why = "no uniform level fits; the coarsest found that does, one stage at another level"
            yield "where no uniform level fits", state.batch([Move(spec, why, None)])
            return
