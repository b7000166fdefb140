"""Which net of a family is best under which budget or floor: the frontier of each cost, in words."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from ..requirement import COSTS, pareto_front

__all__ = ["frontier_of", "requirement_texts"]

WORDS = {
    "macs": "MACs",
    "size_bytes": "bytes of the .tflite",
    "ram_bytes": "bytes of RAM",
    "latency_ms": "ms (LiteRT, one thread)",
}


def frontier_of(costs: Mapping[str, Mapping], cost: str) -> list[str]:
    """Nets that are best under some budget of a cost, cheapest first: each is more accurate than all that cost less."""
    return pareto_front(costs, lambda net: costs[net][cost], lambda net: costs[net]["accuracy"])


def requirement_texts(costs: Mapping[str, Mapping]) -> list[str]:
    """Paragraphs: a table of budgets, floors, nets that are never best, and what sampling leaves open.

    Args:
        costs: by net, as for `findings_page`.
    """
    known = [cost for cost in COSTS if all(row.get(cost) is not None for row in costs.values())]
    lines = ["| budget | best net | int8 accuracy on validation |", "|---|---|---|"]
    never = []
    for cost in known:
        chain = frontier_of(costs, cost)
        for place, net in enumerate(chain):
            above = f"{costs[net][cost]:,} {WORDS[cost]}"
            span = (
                f"from {above}"
                if place == len(chain) - 1
                else f"from {above} to below {costs[chain[place + 1]][cost]:,}"
            )
            lines.append(f"| {span} | {net} | {100 * costs[net]['accuracy']:.2f} % |")
        rest = [net for net in costs if net not in chain]
        if rest:
            never.append(f"by {WORDS[cost]} {', '.join(rest)}")
    floors = []
    chain, below = frontier_of(costs, "macs"), None
    for net in chain:
        accuracy = f"{100 * costs[net]['accuracy']:.2f} %"
        floors.append(f"up to {accuracy} {net}" if below is None else f"above {below} up to {accuracy} {net}")
        below = accuracy
    among = f"Among these {len(costs)} nets alone; `factorizenet_tf.zoo.best` chooses among all that are published."
    texts = ["\n".join(lines), among, f"The fewest MACs that reach a floor of accuracy: {'; '.join(floors)}."]
    if never:
        texts.append(f"Never best, as another costs no more and is as accurate: {'; '.join(never)}.")
    return [*texts, _doubt(costs, chain)]


def _doubt(costs, chain):
    images = min(row["images"] for row in costs.values())
    rate = float(np.mean([row["accuracy"] for row in costs.values()]))
    error = 200 * float(np.sqrt(2 * rate * (1 - rate) / images))
    text = f"Two standard errors of a difference between two nets on {images:,} images are at most about {error:.1f} points"
    close = [
        f"{first} and {second}"
        for first, second in itertools.pairwise(chain)
        if 100 * (costs[second]["accuracy"] - costs[first]["accuracy"]) <= error
    ]
    return f"{text}; neighbours within: {', '.join(close)}." if close else f"{text}; neighbours differ by more."
