"""List the nets to choose from, and what each costs: MACs by its spec, the rest measured on an untrained int8 conversion."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..cost import cost_rows, count_macs
from ..files import write_text
from ..requirement import MEASURED, Requirement
from ..spec import ModelSpec, max_level

__all__ = ["COSTS_FILE", "MeasuredCosts", "Space", "check_budget", "macs", "measure"]


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
        """Give the net of a level, or of one level a stage; `width` None is the first one."""
        return _net(self, level, self.widths[0] if width is None else width)

    def uniform(self, width: int) -> list[ModelSpec]:
        """List the nets of uniform levels of a width, coarse to fine."""
        return list(_uniform(self, width))

    def nets(self) -> Iterator[ModelSpec]:
        """Yield every net once."""
        for width in self.widths:
            last = self.net(max_level(self.net(0, width)), width).levels
            for levels in itertools.product(*(range(k + 1) for k in last)):
                yield self.net(levels, width)

    def changed(self, net: ModelSpec, stage: int, level: int) -> ModelSpec:
        """Give a net with another level in one stage, counted from 0."""
        return self.net((*net.levels[:stage], level, *net.levels[stage + 1 :]), net.width)

    def count(self) -> int:
        """Count the nets."""
        return sum(math.prod(k + 1 for k in self.uniform(width)[-1].levels) for width in self.widths)

    def smallest(self) -> ModelSpec:
        """Give the net with the fewest MACs: the last level of the smallest width."""
        return self.uniform(min(self.widths))[-1]


@functools.lru_cache(maxsize=100_000)
def _net(space, level, width):
    base = space.spec
    return ModelSpec(level, width=width, input_shape=base.input_shape, num_classes=base.num_classes, macro=base.macro)


@functools.lru_cache(maxsize=1024)
def _uniform(space, width):
    return tuple(_net(space, level, width) for level in range(max_level(_net(space, 0, width)) + 1))


macs = functools.lru_cache(maxsize=100_000)(count_macs)


def check_budget(space: Space, requirement: Requirement) -> None:
    """Raise ValueError where the specs alone say that no net can fit; it names the smallest net."""
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


COSTS_FILE = "measured_costs.json"
CALIBRATION_IMAGES = 32
LATENCY_RUNS = 300


class MeasuredCosts:
    """Measure the costs of nets, each once: the figure that is kept decides from then on.

    Args:
        wanted: which of "size_bytes", "ram_bytes" and "latency_ms".
    """

    def __init__(self, wanted: Collection[str]):
        self._wanted = [cost for cost in MEASURED if cost in wanted]
        self._path: Path | None = None
        self._costs: dict[str, dict[str, float]] = {}
        self.labels: tuple[str, ...] | None = None  # class names, which the file holds, too

    def load(self, folder: Path) -> None:
        """Read what a folder keeps, and keep there what is measured from now on.

        Raises:
            ValueError: the file there is damaged.
        """
        self._path = folder / COSTS_FILE
        try:
            self._costs |= json.loads(self._path.read_text()) if self._path.exists() else {}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self._path} is damaged ({error}); delete it to have costs measured again") from None

    def cached(self, spec: ModelSpec) -> dict[str, float]:
        """Give the costs of a net that were measured already."""
        return dict(self._costs.get(spec.name, {}))

    def measure(self, spec: ModelSpec) -> dict[str, float]:
        """Give the wanted costs of a net. Takes seconds the first time, and TensorFlow; nothing where none is wanted.

        Raises:
            ModuleNotFoundError: RAM is wanted and tflite-micro is not installed.
            OSError: the folder cannot be written.
        """
        costs = self.cached(spec)
        missing = [cost for cost in self._wanted if cost not in costs]
        if missing:
            costs |= measure(spec, missing, self.labels)
            self._costs[spec.name] = costs
            if self._path is not None:
                write_text(self._path, json.dumps(self._costs, indent=1, sort_keys=True) + "\n")
        return {cost: costs[cost] for cost in self._wanted}


def measure(spec: ModelSpec, wanted: Collection[str], labels: tuple[str, ...] | None = None) -> dict[str, float]:
    """Measure size, RAM or latency of the int8 .tflite of an untrained net.

    RAM is that of the trained net, size differs from it by some 10 bytes. Biases are random like weights: a .tflite keeps
    equal tensors once, so that an untrained net's biases, all 0, would take several kB less.

    Args:
        spec: the net.
        wanted: which of "size_bytes", "ram_bytes" and "latency_ms" (median at one thread).
        labels: class names to be kept in the file.

    Raises:
        ModuleNotFoundError: RAM is wanted and tflite-micro is not installed.
    """
    import numpy as np

    from ..models.build import build
    from ..models.convert import to_tflite
    from ..models.quantize import quantize_aware
    from ..tflite.int8_model import Int8Model
    from ..tflite.micro import arena_bytes

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (CALIBRATION_IMAGES, *spec.input_shape), np.uint8)
    model = build(spec)
    for variable in model.variables:
        if variable.shape.rank == 1:  # of a BatchNormalization or a bias
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    content = to_tflite(quantize_aware(model, calibration=images), labels=labels)
    costs = {}
    if "size_bytes" in wanted:
        costs["size_bytes"] = len(content)
    if "ram_bytes" in wanted:
        costs["ram_bytes"] = arena_bytes(content)
    if "latency_ms" in wanted:
        costs["latency_ms"] = round(Int8Model(content).latency_ms(runs=LATENCY_RUNS).median_ms, 5)
    return costs
