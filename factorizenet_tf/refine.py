"""Which nets to train next, by the effect of each level in each stage as all that was trained suggests it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np

from .effects import Candidates, Effects, Estimate
from .proposal import Result, after
from .space import Space, macs
from .spec import ModelSpec

__all__ = ["LOOKS", "model", "nearest", "promising", "stage_effects"]

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
