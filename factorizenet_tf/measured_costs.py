"""What a net costs beyond MACs, measured on an untrained int8 conversion and kept in a project's folder."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from .files import write_text
from .requirement import MEASURED
from .spec import ModelSpec

__all__ = ["COSTS_FILE", "MeasuredCosts", "measure"]

COSTS_FILE = "measured_costs.json"
CALIBRATION_IMAGES = 32
LATENCY_RUNS = 300


class MeasuredCosts:
    """The measured costs of nets, each taken once: the figure that is kept decides from then on.

    Args:
        wanted: which of "size_bytes", "ram_bytes" and "latency_ms".
    """

    def __init__(self, wanted: Collection[str]):
        self._wanted = [cost for cost in MEASURED if cost in wanted]
        self._path: Path | None = None
        self._costs: dict[str, dict[str, float]] = {}
        self.labels: tuple[str, ...] | None = None  # class names, which the file holds, too

    def open(self, folder: Path) -> None:
        """Read what the folder keeps, and keep there what is measured from now on.

        Raises:
            ValueError: the file there is damaged.
        """
        self._path = folder / COSTS_FILE
        self._read()

    def _read(self):
        if self._path is not None and self._path.exists():
            try:
                self._costs |= json.loads(self._path.read_text())
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self._path} is damaged ({error}); delete it to have costs measured again") from None

    def known(self, spec: ModelSpec) -> dict[str, float]:
        """The costs of a net that were measured already."""
        return dict(self._costs.get(spec.name, {}))

    def has(self, spec: ModelSpec) -> bool:
        """Whether `of` has nothing to measure."""
        return all(cost in self.known(spec) for cost in self._wanted)

    def of(self, spec: ModelSpec) -> dict[str, float]:
        """The wanted costs of a net. Takes seconds the first time, and TensorFlow; nothing where none is wanted.

        Raises:
            ModuleNotFoundError: RAM is wanted and tflite-micro is not installed.
            OSError: the folder cannot be written.
        """
        if not self.has(spec):
            self._read()  # another worker may have measured it
        known = self.known(spec)
        missing = [cost for cost in self._wanted if cost not in known]
        if missing:
            known = known | measure(spec, missing, self.labels)
            self._read()
            self._costs[spec.name] = known
            if self._path is not None:
                write_text(self._path, json.dumps(self._costs, indent=1, sort_keys=True) + "\n")
        return {cost: known[cost] for cost in self._wanted}


def measure(spec: ModelSpec, wanted: Collection[str], labels: tuple[str, ...] | None = None) -> dict[str, float]:
    """Size, RAM or latency of a net's int8 .tflite, untrained: the RAM of the trained one, and its bytes to within some 10.

    Biases are random like weights: the file keeps equal tensors once, so that those of an untrained net, all 0, would
    take several kB less.

    Args:
        spec: the net.
        wanted: which of "size_bytes", "ram_bytes" and "latency_ms" (median at one thread).
        labels: class names to be kept in the file.
    """
    import numpy as np

    from .int8 import Int8Model
    from .micro import arena_bytes
    from .model import build
    from .quantize import quantize_aware
    from .tflite import to_tflite

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
