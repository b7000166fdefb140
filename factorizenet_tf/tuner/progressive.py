"""Propose which nets to train next for a requirement, and say why: the progressive search, in NumPy alone.

The search first trains the uniform levels that fit, coarse to fine; then, for each stage, the net that has this stage as
coarse as the budget allows and the others at their last level; then the most promising nets by a Gaussian process over the
effects of choices (`surrogate`), uncertain ones first among equal means. In a space that is too large to hold, it considers
nets near the most promising ones. Nets are proposed in batches. A batch depends only on the results of the batches before
it: the order in which trainings end does not matter, and a search is resumed from its results alone.

Source: the strategy of arXiv 2011.14586 as we understand its abstract; the rules are our choice.
"""

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from ..spec import ModelSpec
from .space import distinct, macs
from .state import SAMPLED, Proposal, Result, Search, SearchState, in_proportion, tie_break
from .surrogate import AdditiveGP

__all__ = ["Proposal", "Result", "Search", "SearchState", "effects", "propose"]

UNIFORM_PATIENCE = 2  # uniform levels in a row, all worse than the best, after which finer ones are not trained
BATCH = 3  # nets that are proposed together by the surrogate
MAX_COST_CHECKS = 24  # nets over budget that may be checked for one batch; each check may measure for seconds
CLIMBERS, CLIMBS = 12, 12  # in a space too large to hold: nets whose neighbours are considered, and repetitions


def propose(search: Search, results: Mapping[ModelSpec, Result]) -> SearchState:
    """Replay a search over the results so far, up to the nets to train next.

    Args:
        search: the question.
        results: of the nets trained so far; nets that were not proposed are ignored.

    Returns:
        The state; its `pending` are the nets to train next, none at the end of the search.
    """
    state = SearchState(search, results)
    for purpose, batch in _batches(state):
        if batch:
            state.take(purpose, batch)
        is_full = search.max_nets is not None and len(state.proposals) >= search.max_nets
        if state.pending or is_full:  # of a batch that is over max_nets some are never trained
            break
    return state


# The batches, each with its purpose


def _batches(state: SearchState) -> Iterator[tuple[str, list[Proposal]]]:
    space = state.search.space
    if space.has_trend:
        yield "what was measured before any training", state.batch(_next_batch(state))
    if state.best is None:
        yield from _uniform_levels(state)
        if state.best is None:
            return
        yield "each stage alone", state.batch(_one_stage_coarse(state))
        if space.has_more_than_levels:
            yield "each stage regular", state.batch(_one_stage_regular(state))
    idle = 0
    while idle < state.search.patience * space.kinds_of_choice:
        before = state.best
        batch = state.batch(_next_batch(state))
        if not batch:
            return
        yield "what promises most", batch
        idle = 0 if state.best != before else idle + 1


def _uniform_levels(state: SearchState) -> Iterator[tuple[str, list[Proposal]]]:
    """Go up the uniform levels that fit, for each width and macro-architecture; start elsewhere if none fits.

    The two coarsest levels come first or, with several macro-architectures, the coarsest of each.
    """
    space = state.search.space
    levels = dict(enumerate([spec for spec in specs if state.fits(spec)] for specs in space.uniform()))
    first = 1 if space.has_macros else UNIFORM_PATIENCE
    if not any(levels.values()):
        yield from _fallback_start(state)
        return
    done = dict.fromkeys(levels, 0)
    while True:
        batch = []
        for family, specs in levels.items():
            tried = specs[: done[family]]
            if tried and state.best not in (None, *tried[-UNIFORM_PATIENCE:]):
                continue
            count = 1 if tried else first
            parent = tried[-1] if tried and tried[-1] in state.ranked else None
            for spec in specs[done[family] : done[family] + count]:
                is_first = spec == specs[0]
                why = "the coarsest uniform level that fits" if is_first else "the next finer uniform level"
                batch.append((spec, why, parent))
            done[family] += count
        if not batch:
            break
        yield "up the uniform levels", state.batch(batch)
    why = f"not trained: {'the level' if first == 1 else 'two levels'} before it were worse than the best"
    state.rejected |= {spec: why for family, specs in levels.items() for spec in specs[done[family] :]} | state.rejected


def _fallback_start(state: SearchState) -> Iterator[tuple[str, list[Proposal]]]:
    """Start from the coarsest net found that fits, since two kinds of budget together may exclude every uniform level.

    Considered are nets that differ from a uniform level in one choice and, if there are more choices, some drawn at random;
    at last the smallest net of each family, of the last level and of level 0.
    """
    search, space = state.search, state.search.space
    uniform_nets = [spec for specs in space.uniform() for spec in specs]
    rows = space.neighbours(np.array([space.row_of(spec) for spec in uniform_nets]))
    if space.has_more_than_levels:
        rows = distinct(np.concatenate([rows, search.drawn[: SAMPLED // 8]]))
    specs = [spec for spec in map(space.net_of, _largest_within(state, rows)) if spec not in uniform_nets]
    specs.sort(key=lambda spec: (-macs(spec), tie_break(spec, search.seed)))
    step, misses = math.ceil(len(specs) / MAX_COST_CHECKS), 0
    # The last level has the fewest weights; a regular convolution keeps nothing in RAM between two parts.
    smallest = [
        space.with_levels(net, levels)
        for net in space.smallest_of_families()
        for levels in (None, (0,) * len(net.levels))
    ]
    for spec in [*(spec for first in range(step) for spec in specs[first::step]), *smallest]:
        if misses >= MAX_COST_CHECKS and spec not in smallest:
            continue
        if state.fits(spec):
            misses = 0
            what = "other choices in a stage" if space.has_more_than_levels else "one stage at another level"
            why = f"no uniform level fits; the coarsest found that does, {what}"
            yield "where no uniform level fits", state.batch([(spec, why, None)])
            if state.best is not None:  # else its training failed
                return
        else:
            misses += 1


def _one_stage_coarse(state: SearchState) -> Iterator[tuple[ModelSpec, str, ModelSpec | None]]:
    """For each stage, give the net that has it as coarse as fits and the others at their last level."""
    space = state.search.space
    finest = space.with_levels(state.best, None)
    for stage, last in enumerate(finest.levels):
        for level in range(last):
            spec = space.with_levels(finest, (*finest.levels[:stage], level, *finest.levels[stage + 1 :]))
            if state.fits(spec):
                why = f"{space.stage_names[stage]} as coarse as fits, the others at the last level"
                yield spec, why, _closest_trained(state, spec)
                break


def _one_stage_regular(state: SearchState) -> Iterator[tuple[ModelSpec, str, ModelSpec | None]]:
    """For each stage, give the largest net that fits among those drawn at random that have this stage at level 0."""
    space, drawn = state.search.space, _largest_within(state, state.search.drawn)
    levels = drawn[:, -space.num_stages :]
    for stage, name in enumerate(space.stage_names):
        regular = map(space.net_of, drawn[levels[:, stage] == 0][:MAX_COST_CHECKS])
        for spec in itertools.islice((spec for spec in regular if len(spec.levels) > stage and state.fits(spec)), 1):
            yield spec, f"{name} regular, and as large as fits", _closest_trained(state, spec)


# The most promising nets: among all nets if the space can be held, else near the best ones


def _largest_within(state: SearchState, rows: np.ndarray) -> np.ndarray:
    """Give the rows whose nets are within the budget of MACs, the most MACs first."""
    counts = state.search.space.count_macs(rows)
    order = np.argsort(-counts, kind="stable")
    return rows[order[counts[order] <= state.macs_limit()]]


def _next_batch(state: SearchState) -> list[tuple[ModelSpec, str, ModelSpec | None]]:
    """Choose the next nets by the surrogate, most promising first, and keep the choice for the next call of `propose`."""
    results = {proposal.spec: state.results[proposal.spec] for proposal in state.proposals}
    key, kept = tuple(results.items()), state.search._chosen
    if key not in kept:
        before = set(state.rejected)
        chosen = _chosen(state, results)
        kept[key] = chosen, {spec: why for spec, why in state.rejected.items() if spec not in before}
    chosen, rejected = kept[key]
    state.rejected |= rejected
    return chosen


def _chosen(state, results):
    accuracies = _percent(results, state.best)
    # Rejected nets that are within the MACs and over a measured budget.
    limit, violation = state.search.requirement.limits.get("macs", math.inf), state.search.violation
    costly = (net for net in state.rejected if macs(net) <= limit and violation(net) is not None)
    fits = dict.fromkeys(results, 1) | dict.fromkeys(costly, -1)
    model = state.search.whole or _near_what_promises(state, accuracies, fits)
    mean, deviation = model.mean(accuracies), model.deviation(accuracies)
    open_nets = model.macs <= state.macs_limit()
    open_nets[[model.index(spec) for spec in fits]] = False
    chosen, checks = [], 0
    while open_nets.any() and len(chosen) < BATCH and checks < MAX_COST_CHECKS:
        promise = np.where(open_nets, _promise(state, model, mean, deviation, fits), -np.inf)
        equals = np.flatnonzero(promise >= promise.max() - 1e-9)  # chance decides, not the last bits of a sum
        nets = {state.search.space.net_of(model.rows[index]): index for index in equals}
        spec = min(nets, key=lambda net: tie_break(net, state.search.seed))
        open_nets[nets[spec]] = False
        if spec in fits:  # two macro-architectures may have a net in common
            continue
        if not state.fits(spec):
            fits[spec] = -1
            checks += 1
            continue
        fits[spec] = 1
        parent = _closest_trained(state, spec)
        reason = _reason(state.search.space, spec, parent, mean[nets[spec]], deviation[nets[spec]])
        chosen.append((spec, reason, parent))
        # As if it were trained with the expected result (kriging believer): nets near it become more certain.
        deviation = model.deviation([*accuracies, *(net for net, *_ in chosen)])
    return chosen


def _near_what_promises(
    state: SearchState, accuracies: Mapping[ModelSpec, float], fits: Mapping[ModelSpec, int]
) -> AdditiveGP:
    """Model the nets to consider in a space too large to hold: nets near the trained ones, random ones, and uphill from there.

    Of the random nets the ones nearest to the budget are kept. From the most promising nets the search climbs to neighbours
    that differ in one choice, or in up to three, until none promises more.
    """
    search, space, limit = state.search, state.search.space, state.macs_limit()
    random = np.random.default_rng([search.seed % 2**32, len(state.proposals)])
    drawn = _largest_within(state, search.sample(len(state.proposals)))[: SAMPLED // 8]
    trained = np.array([space.row_of(spec) for spec in state.ranked[:CLIMBERS] or [space.smallest()]])
    rows, looked_at, highest = np.concatenate([drawn, space.neighbours(trained)]), [], -np.inf
    for _ in range(CLIMBS):
        rows = rows[space.count_macs(rows) <= limit]
        looked_at.append(rows)
        model = search.model(fits, rows)
        promise = _promise(state, model, model.mean(accuracies), model.deviation(accuracies), fits)
        promise[[model.index(spec) for spec in fits]] = -np.inf
        if promise.max() <= highest + 1e-6:
            break
        highest = promise.max()
        top = model.rows[np.argsort(-promise, kind="stable")[:CLIMBERS]]
        others = space.altered(np.repeat(top, SAMPLED // 8 // CLIMBERS, axis=0), 3, random)
        rows = np.concatenate([space.neighbours(top), others])
    return search.model(fits, np.concatenate(looked_at))


def _promise(
    state: SearchState, model: AdditiveGP, mean: np.ndarray, deviation: np.ndarray, fits: Mapping[ModelSpec, int]
) -> np.ndarray:
    """Score every candidate: mean plus deviation of its accuracy or, once the floor is reached, the MACs that it likely saves.

    Nets that are probably over a measured budget come last: costs, too, are nearly sums over stages.
    """
    promise = mean + state.search.boldness * deviation
    if state.reaches_floor:
        above = (mean - 100 * state.search.requirement.min_accuracy) / deviation
        saved = 1 - model.macs / macs(state.best)  # nets above the ceiling are not looked at
        # As a logarithm, or nets that all are far below the floor would be equals.
        promise = np.log(np.maximum(saved, 1e-9)) - np.logaddexp(0, -1.7 * above)  # nearly the normal distribution
    is_over = model.mean(fits, with_trend=False) < 0 if -1 in fits.values() else False
    return promise - 1000 * is_over


def _percent(results: Mapping[ModelSpec, Result], best: ModelSpec) -> dict[ModelSpec, float]:
    """Give the accuracies in percent; a pruned training's final one is extrapolated from its distance to the best net's curve."""
    if best is None:
        return {}
    top, found = results[best], {}
    highest = list(itertools.accumulate(top.curve, max))
    for spec, result in results.items():
        if result.pruned and result.curve and highest:
            epoch = min(len(result.curve), len(highest))  # the best net's own training may have been stopped early
            behind = highest[-1] - in_proportion(max(result.curve[:epoch]), highest[epoch - 1], highest[-1])
            found[spec] = 100 * (top.accuracy - behind)
        elif result.accuracy is not None and not result.pruned:
            found[spec] = 100 * result.accuracy
    return found


def _closest_trained(state: SearchState, spec: ModelSpec) -> ModelSpec | None:
    """Find the trained net of the same family that differs in the fewest choices; the best one if there are several."""
    row, *others = (np.array(state.search.space.row_of(net)) for net in (spec, *state.ranked))
    differences = {net: (row != other).sum() for net, other in zip(state.ranked, others) if row[0] == other[0]}
    return min(differences, key=differences.get, default=None)


def _reason(space, spec, parent, mean: float, deviation: float) -> str:
    expected = f"{mean:.1f} % expected, give or take {deviation:.1f}"
    if parent is None:
        is_spec = isinstance(spec, ModelSpec)
        return f"width {spec.width}: {expected}" if is_spec else "its layers alone lost least within the budget"
    changes = []
    for name, own, former in zip(space.stage_names, space.choices_of(spec), space.choices_of(parent)):
        words = ["coarser" if own["level"] < former["level"] else "finer"] * (own["level"] != former["level"])
        others = [what for what in own if what != "level" and own[what] != former[what]]
        words += [f"of {what} {own[what]:g}" if what == "middle" else f"of {own[what]} {what}" for what in others]
        changes += [f"{name} {' and '.join(words)}"] * bool(words)
    return f"{parent.name} with {' and '.join(changes)}: {expected}"


def effects(
    search: Search, results: Mapping[ModelSpec, Result], origin: ModelSpec
) -> dict[str, dict[int, float | None]]:
    """Estimate, from all results together, how a net's accuracy would change with another choice in one respect.

    Args:
        search, results: as for `propose`.
        origin: the net; it has a final accuracy.

    Returns:
        By respect ("stage 1, level", "stage 1, blocks" and so on) and choice, the change in points: 0 for the origin's own
        choice, None if no net with a result has that choice there.
    """
    accuracies = _percent(results, origin)
    model = search.model(accuracies, search.space.neighbours(np.array([search.space.row_of(origin)])))
    changes = model.mean(accuracies)
    changes -= changes[model.index(origin)]
    tried = {
        (f"{name}, {kind}", choice)
        for spec in accuracies
        for name, own in zip(search.space.stage_names, search.space.choices_of(spec))
        for kind, choice in own.items()
    }
    return {
        respect: {
            choice: float(changes[model.index(net)]) if (respect, choice) in tried else None
            for choice, net in alternatives.items()
        }
        for respect, alternatives in search.space.alternatives(origin).items()
    }
