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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from .proposal import Proposal, Result, Walk, before
from .refine import LOOKS, nearest, promising
from .requirement import Requirement
from .space import Space, macs
from .spec import ModelSpec

__all__ = ["ranking", "walk"]

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
