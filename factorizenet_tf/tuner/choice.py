"""Choose the next batch of nets by the surrogate: of a space that can be held among all, else near what promises most."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np

from ..spec import ModelSpec, stage_channels
from .space import macs
from .state import SAMPLED, Result, Search, SearchState, extrapolated_final_accuracy, tie_break
from .surrogate import AdditiveGP, CandidateSet, Posterior

__all__ = ["MAX_COST_CHECKS", "closest_trained", "effects", "largest_within", "next_batch"]

BATCH = 3  # nets that are proposed together by the surrogate
MAX_COST_CHECKS = 24  # nets over budget that are looked at for one batch; each may be a measurement of seconds
CLIMBERS, CLIMBS = 12, 12  # of a space too large to hold: nets whose neighbours are tried, and how often


def largest_within(state: SearchState, rows: np.ndarray) -> np.ndarray:
    """Give the rows whose nets are within the budget of MACs, the most MACs first."""
    counts = state.search.space.count_macs(rows)
    order = np.argsort(-counts, kind="stable")
    return rows[order[counts[order] <= state.macs_limit()]]


def next_batch(state: SearchState) -> list[tuple[ModelSpec, str, ModelSpec | None]]:
    """Choose the next nets by the surrogate, most promising first; the choice is kept for the next call of `propose`."""
    results = {spec: state.results[spec] for spec in state.proposed}
    key = tuple(sorted(results.items(), key=lambda item: (item[0].width, item[0].levels, item[0].name)))
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
    accuracies, budget = _percent(results, state.best), state.search.requirement.limits.get("macs", math.inf)
    fitting = dict.fromkeys(results, 1)
    too_costly = {spec: -1 for spec in state.over_budget if macs(spec) <= budget}
    model = state.search.whole or _near_what_promises(state, accuracies, fitting | too_costly)
    nets = model.candidates
    posterior = model.estimate(accuracies)
    open_nets = nets.macs <= state.macs_limit()
    for spec in results.keys() | too_costly.keys():
        open_nets[nets.index(spec)] = False
    chosen, checks = [], 0
    while open_nets.any() and len(chosen) < BATCH and checks < MAX_COST_CHECKS:
        promise = np.where(open_nets, _promise(state, model, posterior, fitting | too_costly), -np.inf)
        index = _argmax_with_ties(state, nets, promise)
        open_nets[index] = False
        spec = nets.net(index)
        if spec in fitting or spec in too_costly:  # two macro-architectures may have a net in common
            continue
        if not state.fits(spec):
            too_costly[spec] = -1
            checks += 1
            continue
        fitting[spec] = 1
        parent = closest_trained(state, spec)
        chosen.append((spec, _reason(spec, parent, posterior.mean[index], posterior.deviation[index]), parent))
        posterior.believe(index)
    return chosen


def _near_what_promises(
    state: SearchState, accuracies: Mapping[ModelSpec, float], known: Mapping[ModelSpec, int]
) -> AdditiveGP:
    """Model nets worth a look in a space too large to hold: nets like the trained ones, some drawn, and up from there.

    Of the nets drawn those near the budget are looked at. From the most promising nets the search climbs to neighbours in
    one choice, and in up to three, until none promises more.
    """
    search, space, limit = state.search, state.search.space, state.macs_limit()
    random = np.random.default_rng([search.seed % 2**32, len(state.proposals)])
    drawn = largest_within(state, search.sample(len(state.proposals)))[: SAMPLED // 8]
    trained = np.array([space.row_of(spec) for spec in state.ranked[:CLIMBERS]])
    rows, looked_at, highest = np.concatenate([drawn, space.neighbours(trained)]), [], -np.inf
    for _ in range(CLIMBS):
        rows = rows[space.count_macs(rows) <= limit]
        looked_at.append(rows)
        model = search.model(known, rows)
        promise = _promise(state, model, model.estimate(accuracies), known)
        promise[[model.candidates.index(spec) for spec in known]] = -np.inf
        if promise.max() <= highest + 1e-6:
            break
        highest = promise.max()
        top = model.candidates.rows[np.argsort(-promise, kind="stable")[:CLIMBERS]]
        others = space.altered(np.repeat(top, SAMPLED // 8 // CLIMBERS, axis=0), 3, random)
        rows = np.concatenate([space.neighbours(top), others])
    return search.model(known, np.concatenate(looked_at))


def _promise(state: SearchState, model: AdditiveGP, posterior: Posterior, fits: Mapping[ModelSpec, int]) -> np.ndarray:
    """Score every candidate; what probably is over a measured budget comes last: costs are nearly sums over stages, too."""
    promise = _acquisition(state, posterior, model.candidates.macs)
    return promise - 1000 * (model.mean(fits) < 0) if min(fits.values()) < 0 else promise


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


def _acquisition(state: SearchState, posterior: Posterior, counts: np.ndarray) -> np.ndarray:
    """Score every candidate: the accuracy that may be hoped for or, once the floor is reached, the MACs likely saved."""
    if not state.reaches_floor(state.best):
        return posterior.mean + posterior.deviation
    above = (posterior.mean - 100 * state.search.requirement.min_accuracy) / posterior.deviation
    saved = 1 - counts / macs(state.best)  # nets above the ceiling are not looked at
    # As a logarithm, or nets that all are far below the floor would be equals.
    return np.log(np.maximum(saved, 1e-9)) - np.logaddexp(0, -1.7 * above)  # nearly the normal distribution


def _argmax_with_ties(state: SearchState, nets: CandidateSet, promise: np.ndarray) -> int:
    """Give the index of the highest score; chance decides among equals, and not the last bits of a sum."""
    equals = np.flatnonzero(promise >= promise.max() - 1e-9)
    return int(min(equals, key=lambda index: tie_break(nets.net(index), state.search.seed)))


def closest_trained(state: SearchState, spec: ModelSpec) -> ModelSpec | None:
    """Give the trained net of equal width and kind of stages that differs in the fewest choices, the best of several."""
    space = state.search.space
    row = space.row_of(spec)

    def differences(other):
        return sum(a != b for a, b in zip(row, space.row_of(other)))

    return min((other for other in state.ranked if space.row_of(other)[0] == row[0]), key=differences, default=None)


def _reason(spec: ModelSpec, parent: ModelSpec | None, mean: float, deviation: float) -> str:
    expected = f"{mean:.1f} % expected, give or take {deviation:.1f}"
    if parent is None:
        return f"width {spec.width}: {expected}"
    changes = []
    for number, (own, former) in enumerate(zip(_stage_choices(spec), _stage_choices(parent)), 1):
        level, *others = zip(own, former, ("", "blocks", "channels"))
        words = ["coarser" if level[0] < level[1] else "finer"] * (level[0] != level[1])
        words += [f"of {new} {what}" for new, old, what in others if new != old]
        changes += [f"stage {number} {' and '.join(words)}"] * bool(words)
    return f"{parent.name} with {' and '.join(changes)}: {expected}"


def _stage_choices(spec):
    numbers = stage_channels(spec.width, spec.stages)[1:]
    return [(level, stage.blocks, number) for level, stage, number in zip(spec.levels, spec.stages, numbers)]


def effects(
    search: Search, results: Mapping[ModelSpec, Result], origin: ModelSpec
) -> dict[str, dict[object, float | None]]:
    """Estimate how a net's accuracy would change with another choice in one respect, from all results together.

    Args:
        search, results: as for `propose`.
        origin: the net; it has a final accuracy.

    Returns:
        By respect ("stage 1, level", "stage 1, blocks" and so on) and choice the change in points: 0 at the origin's
        own, None where no net with a result has that choice there.
    """
    accuracies = _percent(results, origin)
    model = search.model(accuracies, search.space.neighbours(np.array([search.space.row_of(origin)])))
    mean, nets = model.estimate(accuracies).mean, model.candidates
    tried = {
        (respect, choice)
        for spec in accuracies
        for respect, alternatives in search.space.alternatives(spec).items()
        for choice, net in alternatives.items()
        if net == spec
    }

    def change(respect, choice, net):
        return float(mean[nets.index(net)] - mean[nets.index(origin)]) if (respect, choice) in tried else None

    return {
        respect: {choice: change(respect, choice, net) for choice, net in alternatives.items()}
        for respect, alternatives in search.space.alternatives(origin).items()
    }
