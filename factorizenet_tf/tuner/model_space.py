"""The nets that a trained model may become: a level and a middle for each group of its layers."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._keras import keras
from ..cost import count_macs
from ..models.architecture import architecture_of
from ..models.factorize import factorize, splits_of_layers
from ..models.keras3 import quantizable
from ..models.weights import fingerprint
from ..runs import START_FILE
from ..spec import Architecture, level_text
from ..training.factorized import begin, load_begun
from .space import NetSpace, distinct

if TYPE_CHECKING:
    import pandas

__all__ = ["FactorizedNet", "ModelSpace"]

GROUPS = ("resolution", "each")
FEW = 8  # images that a net is fitted on where its weights do not matter


@dataclass(frozen=True)
class FactorizedNet:
    """A net that a model may become.

    Args:
        name: the model's, with levels and middles.
        level: an int if all groups have it, else one for each.
        levels, middles: of each group of layers, the levels clipped to the group's last; the middle is 1 at level 0.
        macs: of the net.
    """

    name: str
    level: int | tuple[int, ...]
    levels: tuple[int, ...]
    middles: tuple[float, ...]
    macs: int


class ModelSpace(NetSpace):
    """The nets that a trained model may become by `factorize`: for each group of its layers a level and a middle.

    A net's row is 0, the index of each group's middle, and each group's level. A layer that does not become cheaper stays as it is.

    Args:
        model: float tf_keras model that gives logits, as for `factorize`.
        calibration: images to fit the layers on, uint8 (n, height, width, channels).
        name: of the model, with which the nets' names begin; None: its own.
        middles: to choose from.
        groups: "resolution": a group is the layers whose outputs have the same height and width; "each": each layer is a group;
            or patterns of layer names, e.g. "conv[34]*": a group is the layers that match its pattern and none before it, and
            layers that match none stay as they are.
        stem: whether convolutions that read the image may be factorized, too.
        table: the model's `factorization_table` with the same middles, by which a search finds the best nets with fewer
            trainings; None: it does without.
        reference: name of the model on cards, e.g. its name in the zoo; None: its own name.
        command: beginning of the `factorizenet factorize` command that makes and tunes such nets, and a comment, for cards.

    Raises:
        ValueError: as `factorize`; groups or middles are invalid, or a pattern matches no layer that can be factorized.
    """

    has_macros = True

    def __init__(
        self,
        model: keras.Model,
        calibration: np.ndarray,
        *,
        name: str | None = None,
        middles: Sequence[float] = (1, 2, 3),
        groups: str | Sequence[str] = "resolution",
        stem: bool = False,
        table: pandas.DataFrame | None = None,
        reference: str | None = None,
        command: tuple[str, str] | None = None,
    ):
        self.model, self.calibration, self.middles, self.stem = model, calibration, tuple(dict.fromkeys(middles)), stem
        self.command, self.reference = command, reference or name or model.name
        if not self.middles or not all(0 < middle <= 9 for middle in self.middles):
            raise ValueError(f"middles are {self.middles}; give numbers above 0 and at most 9")
        self.original = architecture_of(quantizable(model), name)
        self.name = self.original.name
        self.input_shape, self.num_classes = self.original.input_shape, self.original.num_classes
        splits = splits_of_layers(model, self.middles, stem=stem)
        self._groups = _grouped(model, list(splits), groups)
        self.stage_names, self.num_stages = tuple(self._groups), len(self._groups)
        self.kinds_of_choice = 1 + (len(self.middles) > 1)
        self._lasts = lasts = [max(n for name in names for n, _ in splits[name]) for names in self._groups.values()]
        self._choices = (1, *[len(self.middles)] * self.num_stages, *[last + 1 for last in lasts])
        # By group, level and place: what each layer becomes, whether it is a choice of its own, the MACs saved, the loss.
        shape = self.num_stages, max(lasts) + 1, len(self.middles)
        self._layers = np.empty(shape, object)
        self._is_offered, self._saved, self._loss = np.zeros(shape, bool), np.zeros(shape, int), np.zeros(shape)
        errors = {} if table is None else _errors(table)
        for group, names in enumerate(self._groups.values()):
            seen = set()
            for level, (place, middle) in itertools.product(range(lasts[group] + 1), enumerate(self.middles)):
                chosen = {name: min(level, max(own for own, _ in splits[name])) for name in names}
                chosen = {name: own for name, own in chosen.items() if own and (own, middle) in splits[name]}
                becomes = [splits[name][(chosen[name], middle) if name in chosen else (0, 1)] for name in names]
                as_it_is = [splits[name][0, 1] for name in names]
                self._layers[group, level, place] = {
                    name: (own, middle if splits[name][own, middle][1] else None) for name, own in chosen.items()
                }
                self._saved[group, level, place] = sum(old[2] - new[2] for old, new in zip(as_it_is, becomes))
                for name, new, old in zip(names, becomes, as_it_is) if table is not None else ():
                    self._loss[group, level, place] += errors[name, new[0], new[2]] - errors[name, old[0], old[2]]
                self._is_offered[group, level, place] = tuple(becomes) not in seen
                seen.add(tuple(becomes))
        self.has_trend = table is not None
        self._macs = count_macs(model)
        self._fingerprint = fingerprint(model)

    # Nets

    def net_of(self, row: Sequence[int]) -> FactorizedNet:
        """Give the net of a row."""
        row = self.corrected(np.array([row]))
        places, levels = np.split(row[0, 1:], 2)
        levels = tuple(map(int, levels))
        middles = tuple(self.middles[place] if level else 1 for place, level in zip(places, levels))
        number = max(levels)
        is_uniform = levels == tuple(min(number, last) for last in self._lasts)
        used = {middle for middle, level in zip(middles, levels) if level} - {1}
        text = "-".join(f"{middle:g}" for middle in (middles if len(set(middles)) > 1 else middles[:1])) if used else ""
        name = f"{self.name}-l{level_text(number if is_uniform else levels)}" + f"-m{text}" * bool(text)
        return FactorizedNet(name, number if is_uniform else levels, levels, middles, int(self.count_macs(row)[0]))

    def row_of(self, net: FactorizedNet) -> tuple[int, ...]:
        """Give the row of a net."""
        places = [
            self.middles.index(middle) if level else 0 for middle, level in zip(net.middles, net.levels, strict=True)
        ]
        return (0, *places, *net.levels)

    def smallest_of_families(self) -> list[FactorizedNet]:
        """List the net with the fewest MACs; there is one family."""
        best = [np.unravel_index(saved.argmax(), saved.shape) for saved in self._saved]
        return [self.net_of([0, *(place for _, place in best), *(level for level, _ in best)])]

    def count(self) -> int:
        """Count the nets."""
        return int(np.prod(self._is_offered.sum((1, 2)).astype(object)))

    def uniform(self) -> list[list[FactorizedNet]]:
        """List the nets of uniform levels, coarse to fine, for each middle; the unchanged model is in the first list."""
        found, seen = [], set()
        for place in range(len(self.middles)):
            rows = [[0, *[place] * self.num_stages, *[level] * self.num_stages] for level in range(max(self._choices))]
            nets = [net for net in map(self.net_of, rows) if net not in seen and not seen.add(net)]
            found.append(sorted(nets, key=lambda net: -net.macs))
        return found

    def with_levels(self, net: FactorizedNet, levels: tuple[int, ...] | None) -> FactorizedNet:
        """Give a net other levels; None: the last ones."""
        return self.net_of([*self.row_of(net)[: 1 + self.num_stages], *(self._lasts if levels is None else levels)])

    def choices_of(self, net: FactorizedNet) -> list[dict[str, float]]:
        """Give each group's level and middle."""
        return [{"level": level, "middle": middle} for level, middle in zip(net.levels, net.middles)]

    def _respects(self, net: FactorizedNet, group: int) -> dict[str, tuple[int, Sequence[float]]]:
        """Give the first column and the choices of each respect in which a net's group may differ."""
        middles = {"middle": (1, self.middles)} if net.levels[group] and len(self.middles) > 1 else {}
        return {"level": (1 + self.num_stages, range(self._lasts[group] + 1))} | middles

    # As text and as KerasTuner's values

    def describe(self) -> str:
        """Describe the choices in a line."""
        middles = ", ".join(f"{middle:g}" for middle in self.middles)
        return f"{self.count():,} nets: levels of {', '.join(self.stage_names)} of {self.name}, middle {middles}"

    def columns(self, net: FactorizedNet) -> dict:
        """Give a net's columns in a table of results."""
        middles = ", ".join(f"{middle:g}" for middle in net.middles)
        return {"name": net.name, "level": level_text(net.levels), "middle": middles, "macs": net.macs}

    def identity(self) -> dict:
        """Give what identifies the space: a search continues only in the folder of a search over an equal one."""
        digest = hashlib.sha256(self.calibration.tobytes())
        return {
            "model": self._fingerprint,
            "groups": {name: list(layers) for name, layers in self._groups.items()},
            "middles": list(self.middles),
            "images": digest.hexdigest(),
            "table": hashlib.sha256(self._loss.round(6).tobytes()).hexdigest() if self.has_trend else None,
        }

    def values_to_choose(self) -> dict[str, list]:
        """List the values of KerasTuner's hyperparameters: the groups' levels, `stage1` and so on, and middles, `middle1`."""
        names = [f"{kind}{number + 1}" for kind in ("middle", "stage") for number in range(self.num_stages)]
        values = [list(self.middles) for _ in range(self.num_stages)]
        values += [list(range(last + 1)) for last in self._lasts]
        return dict(zip(names, values))

    def values_of(self, net: FactorizedNet) -> dict:
        """Give the values of a net's hyperparameters."""
        return dict(zip(self.values_to_choose(), (*net.middles, *net.levels)))

    def net_from(self, values: Mapping) -> FactorizedNet:
        """Give the net of hyperparameter values; a choice that makes nothing cheaper leaves its layers as they are."""
        middles, levels = ([values[f"{kind}{n + 1}"] for n in range(self.num_stages)] for kind in ("middle", "stage"))
        places = [self.middles.index(middle) if level else 0 for middle, level in zip(middles, levels)]
        return self.net_of([0, *places, *map(int, levels)])

    # Rows

    def rows(self) -> np.ndarray:
        """Give the rows of all nets, int (n, 1 + 2 groups)."""
        return self.corrected(np.indices(self._choices, np.int16).reshape(len(self._choices), -1).T)

    def corrected(self, rows: np.ndarray) -> np.ndarray:
        """Turn choices that change nothing into level 0; give each net once."""
        rows = rows.copy()
        places, levels = np.split(rows[:, 1:], 2, axis=1)  # views
        np.minimum(levels, self._lasts, out=levels, casting="unsafe")
        levels *= self._is_offered[np.arange(self.num_stages), levels, places]
        places *= levels > 0
        return distinct(rows)

    def count_macs(self, rows: np.ndarray) -> np.ndarray:
        """Count the MACs, int64 (n,)."""
        return self._macs - self._of_groups(self._saved, rows)

    def trend(self, rows: np.ndarray) -> np.ndarray | None:
        """Estimate the relative error at the int8 logits, assuming that the layers' own squared errors add up."""
        return np.sqrt(np.maximum(self._of_groups(self._loss, rows), 0)) if self.has_trend else None

    def axes(self, rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Give the choices that may change accuracy: the levels and, if there are several, the middles (1 at level 0)."""
        places, levels = np.split(rows[:, 1:], 2, axis=1)
        found = [("level", own) for own in levels.T]
        if len(self.middles) > 1:
            found += [("ratio", own) for own in np.where(levels > 0, np.array(self.middles)[places], 1).T]
        return found

    def _of_groups(self, table, rows):
        places, levels = np.split(rows[:, 1:], 2, axis=1)
        return table[np.arange(self.num_stages), levels, places].sum(1)

    # Models

    def layers_of(self, net: FactorizedNet) -> tuple[dict[str, int], dict[str, float]]:
        """Give level and middle by layer, as `factorize` takes them."""
        row, chosen = self.row_of(net), {}
        for group in range(self.num_stages):
            chosen |= self._layers[group, row[1 + self.num_stages + group], row[1 + group]]
        levels = {name: level for name, (level, _) in chosen.items()}
        return levels, {name: middle for name, (_, middle) in chosen.items() if middle not in (None, 1)}

    def factorized(self, net: FactorizedNet, images: int | None = None) -> keras.Model:
        """Make a net's tf_keras model, fitted on the first `images` of the images; None: on all."""
        (level, middle), model = self.layers_of(net), self.model
        if level:
            model = factorize(model, level, middle=middle, calibration=self.calibration[:images], stem=self.stem)
        return quantizable(model)

    def spec_of(self, net: FactorizedNet) -> Architecture:
        """Give what a net is built from."""
        return architecture_of(self.factorized(net, FEW), net.name)

    def start(self, net: FactorizedNet, folder: Path) -> list[np.ndarray]:
        """Give the weights that a net's tuning in a folder starts from: fitted once, and kept there."""
        command = self.command_of(net) or ""
        if not (folder / START_FILE).exists():
            begin(folder, self.factorized(net), self.spec_of(net), command)
        return load_begun(folder, command).get_weights()

    def command_of(self, net: FactorizedNet) -> str | None:
        """Write the command that makes and tunes a net; None if the space has none, or for the unchanged model."""
        level, middle = (
            ",".join(f"{name}={number:g}" for name, number in numbers.items()) for numbers in self.layers_of(net)
        )
        if self.command is None or not level:
            return None
        start, comment = self.command
        middle = f" --middle {middle}" if middle else ""
        return f"{start} --level {level}{middle} --run runs/{net.name}{comment}"

    @property
    def teacher(self) -> tuple[Architecture, list[np.ndarray], str]:
        """The model itself: its architecture, its weights and its name on cards."""
        return self.original, quantizable(self.model).get_weights(), self.reference


def _grouped(model, names: list[str], groups: str | Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Give the layers of each group, in the model's order."""
    if groups == "each":
        return {name: (name,) for name in names}
    found = {}
    if groups == "resolution":
        for name in names:
            height, width = model.get_layer(name).output_shape[1:3]
            found.setdefault(f"{height}x{width}", []).append(name)
        return {title: tuple(layers) for title, layers in found.items()}
    if isinstance(groups, str) or not groups:
        raise ValueError(f"groups is {groups!r}; it must be {', '.join(GROUPS)}, or patterns of layers' names")
    left = list(names)
    for pattern in groups:
        found[pattern] = tuple(fnmatch.filter(left, pattern))
        if not found[pattern]:
            raise ValueError(
                f"the group {pattern!r} has no layer that can be factorized and is in no group before it; there are "
                f"{', '.join(names)}"
            )
        left = [name for name in left if name not in found[pattern]]
    return found


def _errors(table: pandas.DataFrame) -> dict[tuple[str, int, int], float]:
    """Give the squared error at the logits, int8, by layer, groups and MACs, which tell splits apart."""
    return {(row.layer, row.groups, row.macs): row.logits_error_int8**2 for row in table.itertuples()}
