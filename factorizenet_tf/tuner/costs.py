"""Measure costs of nets other than MACs (bytes, RAM, milliseconds) on an untrained int8 conversion."""

import json
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..files import write_text
from ..requirement import MEASURED
from ..spec import Architecture, ModelSpec
from ..tflite import regroup
from ..tflite.int8_model import Int8Model
from ..tflite.micro import arena_bytes

__all__ = ["COSTS_FILE", "MeasuredCosts", "measure", "milliseconds"]

COSTS_FILE = "measured_costs.json"
CALIBRATION_IMAGES = 32


class MeasuredCosts:
    """Measure the costs of nets, each once: the stored number decides from then on.

    Args:
        wanted: which of "size_bytes", "ram_bytes" and "latency_ms".
    """

    def __init__(self, wanted: Collection[str]):
        self._wanted = [cost for cost in MEASURED if cost in wanted]
        self._path: Path | None = None
        self._costs: dict[str, dict[str, float]] = {}
        self.labels: tuple[str, ...] | None = None  # class names, which the file holds, too

    def load(self, folder: Path) -> None:
        """Read the costs stored in a folder, and store there what is measured from now on.

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

    def measure(self, spec: ModelSpec | Architecture) -> dict[str, float]:
        """Give the wanted costs of a net, measuring those not stored yet, which takes seconds and TensorFlow.

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


def measure(
    spec: ModelSpec | Architecture, wanted: Collection[str], labels: tuple[str, ...] | None = None
) -> dict[str, float]:
    """Measure size, RAM or latency of the int8 .tflite of an untrained net.

    RAM equals the trained net's. Size is at most some 100 bytes larger: where ReLU6 reaches 6 in several trained layers, they
    share one scale. Biases are made random like weights, since a .tflite stores equal tensors once, and the biases of an
    untrained net, all 0, would take several kB less.

    Args:
        spec: the net.
        wanted: which of "size_bytes", "ram_bytes" and "latency_ms" (as `milliseconds`).
        labels: class names to be kept in the file.

    Raises:
        ModuleNotFoundError: RAM is wanted and tflite-micro is not installed.
    """
    from ..models.build import build
    from ..models.convert import to_tflite
    from ..models.quantize import quantize_aware

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (CALIBRATION_IMAGES, *spec.input_shape), np.uint8)
    model = build(spec)
    for variable in model.variables:  # kernels, too, so that a net has one size
        shape = variable.shape.as_list()
        if len(shape) == 1:  # of a BatchNormalization or a bias
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif "kernel" in variable.name:
            fan_in = math.prod(shape[:-1] if shape[-1] > 1 else shape[:2])
            variable.assign(rng.standard_normal(shape) / math.sqrt(fan_in))
    content = to_tflite(quantize_aware(model, calibration=images), labels=labels)
    costs = {}
    if "size_bytes" in wanted:
        costs["size_bytes"] = len(content)
    if "ram_bytes" in wanted:
        costs["ram_bytes"] = arena_bytes(content)
    if "latency_ms" in wanted:
        costs["latency_ms"] = round(milliseconds(spec, Int8Model(content)), 5)
    return costs


def milliseconds(spec: ModelSpec | Architecture, model: Int8Model) -> float:
    """Time an inference of a net's int8 model, median, one thread; a factorized model's as `export --regroup fastest` rewrites it."""
    if isinstance(spec, Architecture):
        model = type(model)(regroup.regroup_fastest(model.content).content)
    return model.latency_ms().median_ms
