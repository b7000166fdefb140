"""Propose which nets to train next for a requirement, and say why: the progressive search, in NumPy alone.

The search goes up the uniform levels that fit, coarse to fine; then takes each stage alone as coarse as the budget allows,
with the others at their last level; then trains what promises most by a Gaussian process over the effects of choices
(`surrogate`), and of nets with equal means the uncertain ones first. Of a space that is too large to hold it looks at nets
near those that promise most. Nets are proposed in batches. A batch depends on the results of the batches before it and on
nothing else: trainings that end in any order lead to the same nets, and a search is resumed from its results alone.

Source: the strategy of arXiv 2011.14586 as we understand its abstract; the rules are our choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from ..spec import ModelSpec
from .choice import MAX_COST_CHECKS, closest_trained, effects, largest_within, next_batch
from .space import Space, at_level, macs, uniform
from .state import Proposal, Result, Search, SearchState, ranking, tie_break

__all__ = ["Proposal", "Result", "Search", "SearchState", "effects", "propose", "ranking"]

UNIFORM_PATIENCE = 2  # uniform levels in a row, all worse than the best, after which finer ones are not trained


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


# The batches, each with its purpose


def _batches(state: SearchState) -> Iterator[tuple[str, list[Proposal]]]:
    yield from _uniform_levels(state)
    if state.best is None:
        return
    yield "each stage alone", state.batch(_one_stage_coarse(state))
    if state.search.space.has_macros:
        yield "each stage regular", state.batch(_one_stage_regular(state))
    idle = 0
    while idle < state.search.patience * state.search.space.kinds_of_choice:
        before = state.best
        batch = state.batch(next_batch(state))
        if not batch:
            return
        yield "what promises most", batch
        idle = 0 if state.best != before else idle + 1


def _uniform_levels(state: SearchState) -> Iterator[tuple[str, list[Proposal]]]:
    """Go up the uniform levels of each width and macro-architecture that fit; where none fits start elsewhere.

    The two coarsest are trained first; of each of several macro-architectures the coarsest.
    """
    space = state.search.space
    levels = {family: [spec for spec in uniform(family.base) if state.fits(spec)] for family in space.families}
    first = 1 if space.macros else UNIFORM_PATIENCE
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
    """Start from the coarsest net that fits with one stage off a uniform level: two kinds of budget can leave no other."""
    budget = state.search.requirement.limits.get("macs", math.inf)
    specs = [spec for spec in _one_stage_off_uniform(state.search.space) if macs(spec) <= budget]
    specs.sort(key=lambda spec: (-macs(spec), tie_break(spec, state.search.seed)))
    step, misses = math.ceil(len(specs) / MAX_COST_CHECKS), 0
    for spec in (spec for first in range(step) for spec in specs[first::step]):
        if state.fits(spec):
            misses = 0
            what = "fewer blocks or channels" if state.search.space.has_macros else "one stage at another level"
            why = f"no uniform level fits; the coarsest found that does, {what}"
            yield "where no uniform level fits", state.batch([(spec, why, None)])
            if state.best is not None:  # else its training failed
                return
        else:
            misses += 1
        if misses == MAX_COST_CHECKS:
            return


def _one_stage_off_uniform(space: Space) -> list[ModelSpec]:
    """List, once each, the nets that differ from a uniform level in one stage, or have as many blocks or channels in all."""
    nets = [spec for family in space.families for spec in uniform(family.base)]
    rows = np.array([space.row_of(spec) for spec in nets])
    stages, changed = space.num_stages, [space.neighbours(rows)]
    for place in range(space.most_places):
        for columns in (slice(1, 1 + stages), slice(1 + stages, 1 + 2 * stages), slice(1, 1 + 2 * stages)):
            changed.append(rows.copy())
            changed[-1][:, columns] = place
    return [spec for spec in map(space.net_of, space.corrected(np.concatenate(changed))) if spec not in nets]


def _one_stage_coarse(state: SearchState) -> Iterator[tuple[ModelSpec, str, ModelSpec | None]]:
    """For each stage give the net that has it as coarse as fits and the others at the last level."""
    finest = uniform(state.best)[-1]
    for stage, last in enumerate(finest.levels):
        for level in range(last):
            spec = at_level(finest, (*finest.levels[:stage], level, *finest.levels[stage + 1 :]))
            if state.fits(spec):
                why = f"stage {stage + 1} as coarse as fits, the others at the last level"
                yield spec, why, closest_trained(state, spec)
                break


def _one_stage_regular(state: SearchState) -> Iterator[tuple[ModelSpec, str, ModelSpec | None]]:
    """For each stage give a net that has it at level 0, of those drawn the largest that fits, whatever else it has."""
    drawn = largest_within(state, state.search.drawn)
    levels = state.search.space.values(drawn)[2]
    for stage in range(levels.shape[1]):
        regular = map(state.search.space.net_of, drawn[levels[:, stage] == 0][:MAX_COST_CHECKS])
        for spec in itertools.islice((spec for spec in regular if len(spec.stages) > stage and state.fits(spec)), 1):
            yield spec, f"stage {stage + 1} regular, and as large as fits", closest_trained(state, spec)
