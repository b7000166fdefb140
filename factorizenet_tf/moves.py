"""From one net to its neighbours: a stage made coarser or finer, the others paying for it or using what it frees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .spec import ModelSpec

__all__ = ["Move", "cheaper", "mixed", "near", "trades"]


@dataclass(frozen=True)
class Move:
    """A step from `parent` (None: from nowhere) to a net, and why it may be worth it."""

    spec: ModelSpec
    reason: str
    parent: ModelSpec | None


def trades(space, origin: ModelSpec, fits: Callable, macs: Callable) -> list[Move]:
    """Neighbours that use a budget up: one stage coarser or finer, the others finer or coarser as it fits; each once.

    Args:
        space: the `Space`.
        origin: the net.
        fits: whether a net is in budget.
        macs: MACs of a net.
    """
    found = {}
    _add(found, origin, _filled(space, origin, set(), fits, macs), "every stage as coarse as fits")
    for stage, level, last in _stages(space, origin):
        if level > 0:
            for spec, payers in _paid(space, origin, stage, fits, macs):
                by = f", paid by stage {' and '.join(str(p + 1) for p in payers)} finer" if payers else ""
                filled = _filled(space, spec, {*payers}, fits, macs)
                _add(found, origin, filled, f"stage {stage + 1} coarser{by}")
        if level < last:
            finer = _changed(space, origin, {stage: level + 1})
            if fits(finer):
                _add(
                    found,
                    origin,
                    _filled(space, finer, {stage}, fits, macs),
                    f"stage {stage + 1} finer, the others coarser",
                )
    for spec, width in _other_widths(space, origin, fits):
        _add(found, origin, _filled(space, spec, set(), fits, macs), f"width {width}")
    return list(found.values())


def near(space, origin: ModelSpec, fits: Callable) -> list[Move]:
    """Neighbours in budget of which one stage alone is one level coarser or finer; arguments as for `trades`."""
    found = {}
    for stage, level, last in _stages(space, origin):
        for other, what in ((level - 1, "coarser"), (level + 1, "finer")):
            if 0 <= other <= last and fits(spec := _changed(space, origin, {stage: other})):
                _add(found, origin, spec, f"stage {stage + 1} {what}")
    return list(found.values())


def cheaper(space, origin: ModelSpec, fits: Callable, macs: Callable) -> list[Move]:
    """Neighbours in budget with fewer MACs: a stage finer by one level or all, or one coarser that others pay for."""
    found = {}

    def allowed(spec):
        return macs(spec) < macs(origin) and fits(spec)

    for stage, level, last in _stages(space, origin):
        for finer in {level + 1, last}:
            if level < finer <= last and allowed(spec := _changed(space, origin, {stage: finer})):
                _add(found, origin, spec, f"stage {stage + 1} finer")
        if level > 0:
            for spec, payers in _paid(space, origin, stage, allowed, macs):
                what = f"stage {stage + 1} coarser, paid by stage {' and '.join(str(p + 1) for p in payers)} finer"
                _add(found, origin, spec, what)
    for spec, width in _other_widths(space, origin, allowed):
        _add(found, origin, spec, f"width {width}")
    return list(found.values())


def mixed(space) -> list[ModelSpec]:
    """Every net once that one stage alone keeps from being of a uniform level."""
    uniform = [spec for width in space.widths for spec in space.uniform(width)]
    found = {
        _changed(space, origin, {stage: level}): None
        for origin in uniform
        for stage, _, last in _stages(space, origin)
        for level in range(last + 1)
    }
    return [spec for spec in found if spec not in uniform]


def _add(found, origin, spec, what):
    if spec not in (origin, *found):
        found[spec] = Move(spec, f"{origin.name} with {what}", origin)


def _stages(space, origin) -> Iterator[tuple[int, int, int]]:
    """(stage from 0, its level, its last level)."""
    last = space.uniform(origin.width)[-1].levels
    return zip(range(len(last)), origin.levels, last)


def _changed(space, origin, levels):
    return space.net(tuple(levels.get(i, k) for i, k in enumerate(origin.levels)), origin.width)


def _filled(space, spec, kept, fits, macs):
    """Stages but those kept coarser, the one first that uses most of the budget, until no more fits."""
    while True:
        steps = [
            _changed(space, spec, {stage: level - 1})
            for stage, level, _ in _stages(space, spec)
            if level > 0 and stage not in kept
        ]
        steps = [step for step in steps if fits(step)]
        if not steps:
            return spec
        spec = max(steps, key=macs)


def _paid(space, origin, stage, allowed, macs):
    """(net, paying stages) with a stage one level coarser.

    No stage pays where it need not; else each that can alone, by the fewest levels; else those together that free most.
    """
    change = {stage: origin.levels[stage] - 1}
    if allowed(spec := _changed(space, origin, change)):
        return [(spec, [])]
    alone = []
    others = [(i, level, last) for i, level, last in _stages(space, origin) if i != stage]
    for payer, level, last in others:
        for paid in range(level + 1, last + 1):
            if allowed(spec := _changed(space, origin, change | {payer: paid})):
                alone.append((spec, [payer]))
                break
    while not alone:
        steps = {i: change.get(i, level) + 1 for i, level, last in others if change.get(i, level) < last}
        if not steps:
            return []
        payer = min(steps, key=lambda i: macs(_changed(space, origin, change | {i: steps[i]})))
        change[payer] = steps[payer]
        if allowed(spec := _changed(space, origin, change)):
            return [(spec, sorted(change.keys() - {stage}))]
    return alone


def _other_widths(space, origin, allowed):
    """(net, width): the next wider and the next narrower width, all stages shifted by as few levels as fit."""
    widths = sorted(space.widths)
    place = widths.index(origin.width)
    for width in widths[max(0, place - 1) : place] + widths[place + 1 : place + 2]:
        last = space.uniform(width)[-1].levels
        for shift in range(-max(last), max(last) + 1):
            spec = space.net(tuple(min(max(0, k + shift), m) for k, m in zip(origin.levels, last)), width)
            if allowed(spec):
                yield spec, width
                break
