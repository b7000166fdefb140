"""From one net to its neighbours: a stage made coarser, and the stage that pays for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .spec import ModelSpec

__all__ = ["Move", "moves"]


@dataclass(frozen=True)
class Move:
    """A step from `parent` (None: from nowhere) to a net, and why it may be worth it."""

    spec: ModelSpec
    reason: str
    parent: ModelSpec | None


def moves(space, origin: ModelSpec, fits: Callable, macs: Callable, below: int | None) -> list[Move]:
    """The neighbours of a net that fit, each once.

    Args:
        space: the `Space`.
        origin: the net.
        fits: whether a net is in budget.
        macs: MACs of a net.
        below: None where accuracy is looked for; else neighbours have fewer MACs than this.
    """
    last = space.uniform(origin.width)[-1].levels

    def allowed(spec):
        return (below is None or macs(spec) < below) and fits(spec)

    found = {}
    stages = range(len(origin.levels))
    if below is not None:
        for stage in stages:
            for level in {origin.levels[stage] + 1, last[stage]}:
                if origin.levels[stage] < level <= last[stage]:
                    _add(found, allowed, _changed(space, origin, {stage: level}), f"stage {stage + 1} finer", origin)
    for stage in stages:
        coarser = list(reversed(range(origin.levels[stage])))
        free = [k for k in coarser if allowed(_changed(space, origin, {stage: k}))]
        for level in {*free[:1], *free[-1:]}:  # one level coarser, and the coarsest in budget
            _add(found, allowed, _changed(space, origin, {stage: level}), f"stage {stage + 1} coarser", origin)
        beyond = [k for k in coarser if k not in free][:1]
        for level in beyond:
            for spec, payers in _paid(space, origin, stage, level, last, allowed, macs):
                what = f"stage {stage + 1} coarser, paid by stage {' and '.join(str(p + 1) for p in payers)} finer"
                _add(found, allowed, spec, what, origin)
    for spec, what in _other_widths(space, origin, allowed):
        _add(found, allowed, spec, what, origin)
    found.pop(origin, None)
    return list(found.values())


def _add(found, allowed, spec, reason, origin):
    if spec not in found and allowed(spec):
        found[spec] = Move(spec, f"{origin.name} with {reason}", origin)


def _changed(space, origin, levels):
    return space.net(tuple(levels.get(i, k) for i, k in enumerate(origin.levels)), origin.width)


def _paid(space, origin, stage, level, last, allowed, macs):
    """(net, paying stages): each other stage pays alone by the fewest levels; where none can, those that free most do."""
    others = [i for i in range(len(last)) if i != stage]
    alone = []
    for payer in others:
        for paid in range(origin.levels[payer] + 1, last[payer] + 1):
            spec = _changed(space, origin, {stage: level, payer: paid})
            if allowed(spec):
                alone.append((spec, [payer]))
                break
    if alone:
        return alone
    levels = {stage: level}
    while True:
        spec = _changed(space, origin, levels)
        if allowed(spec):
            return [(spec, sorted(set(levels) - {stage}))]
        finer = {i: levels.get(i, origin.levels[i]) + 1 for i in others}
        steps = [_changed(space, origin, levels | {i: k}) for i, k in finer.items() if k <= last[i]]
        if not steps:
            return []
        cheapest = min(steps, key=macs)
        levels |= {i: cheapest.levels[i] for i in others if cheapest.levels[i] != origin.levels[i]}


def _other_widths(space, origin, allowed):
    """The next wider net, all stages finer by as few levels as fit, and the next narrower one, as coarse as fits."""
    widths = sorted(space.widths)
    place = widths.index(origin.width)
    for width in widths[max(0, place - 1) : place] + widths[place + 1 : place + 2]:
        last = space.uniform(width)[-1].levels
        for shift in range(-max(last), max(last) + 1):
            spec = space.net(tuple(min(max(0, k + shift), m) for k, m in zip(origin.levels, last)), width)
            if allowed(spec):
                yield spec, f"width {width}"
                break
