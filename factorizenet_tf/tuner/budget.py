"""Refuse a budget that no net of a space can keep, and say which changes would help, with numbers."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from ..cost import cost_rows
from ..macro import MACROS
from ..requirement import Requirement
from ..spec import ModelSpec
from .costs import measure
from .space import NetSpace, Space, macs

__all__ = ["check_budget", "least_costs", "what_would_fit", "what_would_help"]

UNITS = {"macs": "MACs", "size_bytes": "bytes of file", "ram_bytes": "bytes of RAM", "latency_ms": "ms"}


def check_budget(space: NetSpace, requirement: Requirement) -> None:
    """Raise ValueError if the specs alone show that no net can fit; the message names the smallest net, and what would fit."""
    if not isinstance(space, Space):
        smallest = space.smallest()
        if macs(smallest) > requirement.limits.get("macs", math.inf):
            raise ValueError(
                f"max_macs is {requirement.max_macs:,}; the smallest net, {smallest.name}, has {macs(smallest):,} MACs; give at "
                "least these, or smaller middles, or let the layers that read the image be factorized, too (--stem)"
            )
        return
    for cost, why in (
        ("macs", "the smallest net, {}, has {:,} MACs"),
        ("size_bytes", "the weights of the smallest net, {}, alone have {:,}"),
        ("ram_bytes", "the stem of the smallest net, {}, alone needs {:,}"),
    ):
        net, least = _smallest(space, [cost])[cost]
        if least > requirement.limits.get(cost, math.inf):
            help_text = what_would_fit(space, requirement, least_costs, "at least ")
            raise ValueError(f"max_{cost} is {requirement.limits[cost]:,}; {why.format(net.name, least)}; {help_text}")


def least_costs(spec: ModelSpec) -> dict[str, int]:
    """Give lower bounds of a net's costs from its spec alone: MACs, the weights' bytes, and the stem's activations for RAM."""
    stem = spec.plan()[0]
    stem_bytes = math.prod(stem.input_shape) + math.prod(stem.output_shape)
    weight_bytes = sum(row.weight_bytes for row in cost_rows(spec))  # the file holds them all, and more
    return {"macs": macs(spec), "size_bytes": weight_bytes, "ram_bytes": stem_bytes}


def what_would_help(space: NetSpace, requirement: Requirement, say: Callable[[str], None]) -> str:
    """Say which limits to raise and what else would make nets fit, measured on some nets; `say` gets a line before each."""
    text = f"raise {', '.join('max_' + cost for cost in requirement.limits)}"
    if not isinstance(space, Space):
        return f"{text}, or give smaller middles"

    def costs(net):
        say(f"measuring {net.name} at {'x'.join(map(str, net.input_shape))}: would it fit?")
        return {"macs": macs(net)} | measure(net, requirement.limits)

    return f"{text}; {what_would_fit(space, requirement, costs)}"


def what_would_fit(
    space: Space, requirement: Requirement, costs: Callable[[ModelSpec], Mapping[str, float]], about: str = ""
) -> str:
    """Say which changes of a space bring a smallest net within the limits, with its numbers; all together if none does alone.

    Args:
        space: of which no net fits.
        requirement: has the limits.
        costs: gives the costs of a net.
        about: text before numbers of bytes that are bounds, e.g. "at least ".
    """
    found, last, together = {}, None, _together(space)
    for change, net in _smaller(space, requirement.limits):
        if (
            change in found
            or (found and change == together)
            or (change != together and requirement.violation(least_costs(net)))
        ):
            continue  # which saves a measurement
        numbers = {cost: value for cost, value in costs(net).items() if cost in requirement.limits}
        shown = ", ".join(
            f"{about if cost.endswith('bytes') else ''}{value:,} {UNITS[cost]}" for cost, value in numbers.items()
        )
        last = f"{change}: {shown}"
        if requirement.violation(numbers) is None:
            found[change] = last
    if found:
        is_bound = about and any(cost.endswith("bytes") for cost in requirement.limits)
        return f"what {'might' if is_bound else 'would'} help: {'; '.join(found.values())}"
    return "no smaller width, image or other macro-architecture fits, either" + (f" ({last})" if last else "")


def _smallest(space: Space, costs: Iterable[str]) -> dict[str, tuple[ModelSpec, int]]:
    """Give, by cost, the net with the least of it, as far as specs alone tell, and that least; MACs tell of milliseconds."""
    nets, found = [(net, least_costs(net)) for net in space.smallest_of_families()], {}
    for cost in costs:
        told = "macs" if cost == "latency_ms" else cost
        net, least = min(nets, key=lambda pair, told=told: pair[1][told])
        found[cost] = net, least[told]
    return found


def _smaller(space: Space, limits: Iterable[str]) -> Iterator[tuple[str, ModelSpec]]:
    """Yield (change, a smallest net then) for each change that makes a limited cost less, and last for all together."""
    height, width, channels = space.spec.input_shape
    half, own = (height // 2, width // 2), (space.widths, space.macros)
    changes = [("--width 8", {}, (8,), space.macros)]
    changes.append((f"--size {half[0]}", {"input_shape": (*half, channels)}, *own))
    changes.append(("--channels 1 (grey)", {"input_shape": (height, width, 1)}, *own))
    others = [name for name in MACROS if name not in (space.macros or (space.spec.macro,))]
    changes += [(f"--macro {name}", {}, space.widths, (name,)) for name in others]
    changes.append((_together(space), {"input_shape": (*half, 1)}, (8,), space.macros))
    present = _smallest(space, limits)
    for change, fields, widths, macros in changes:
        with contextlib.suppress(ValueError):  # the images are too small for it
            spec = dataclasses.replace(space.spec, **fields)
            changed = dataclasses.replace(space, spec=spec, widths=widths, macros=macros)
            found = _smallest(changed, limits)
            nets = dict.fromkeys(net for cost, (net, least) in found.items() if least < present[cost][1])
            yield from ((change, net) for net in nets)


def _together(space: Space) -> str:
    return (
        f"a width of 8{', half the size and grey' if space.spec.input_shape[2] > 1 else ' and half the size'} together"
    )
