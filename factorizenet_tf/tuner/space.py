"""The spaces of nets that a search chooses from: rows of integers, and the MACs of each."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..cost import cost_rows, count_macs
from ..macro import Stage
from ..spec import Architecture, ModelSpec, groups_at, last_level, level_text, max_level, stage_channels

__all__ = ["Family", "NetSpace", "Space", "at_level", "distinct", "macs", "uniform"]


class Family(NamedTuple):
    """The nets of one macro-architecture and one width.

    Args:
        macro: the macro-architecture's text.
        base: its net of level 0, with its own blocks and channels, or the nearest choices.
        stages: the macro-architecture's own.
        blocks, channels: the choices for each stage, ascending.
    """

    macro: str
    base: ModelSpec
    stages: tuple[Stage, ...]
    blocks: tuple[tuple[int, ...], ...]
    channels: tuple[tuple[int, ...], ...]


class NetSpace:
    """The interface of a space of nets: each net is a row of integers, whose last `num_stages` columns are its levels.

    The first column numbers families. A net has `name`, `levels` and `level`, an int if all levels are the same. Subclasses
    give the rest.

    Attributes:
        num_stages: number of parts with a level of their own: stages, or groups of layers.
        stage_names: of each, as messages have it.
        kinds_of_choice: number of properties in which nets may differ, levels and widths counting as one.
        has_macros: whether families differ in more than width.
        has_trend: whether something was measured of the nets before any training: whether `trend` gives anything.
        input_shape, num_classes: of the images, (height, width, channels), and their classes.
    """

    num_stages: int
    stage_names: tuple[str, ...]
    kinds_of_choice: int
    has_macros: bool
    has_trend = False
    input_shape: tuple[int, int, int]
    num_classes: int
    _choices: tuple[int, ...]  # the number of choices in each column, in the family with the most

    @property
    def has_more_than_levels(self) -> bool:
        """Tell whether nets may differ in more than level and width."""
        return self.kinds_of_choice > 1

    def smallest(self):
        """Give the net with the fewest MACs."""
        return min(self.smallest_of_families(), key=macs)

    def nets(self) -> Iterator:
        """Yield every net once."""
        return map(self.net_of, self.rows())

    def neighbours(self, rows: np.ndarray) -> np.ndarray:
        """Give the nets that differ in at most one choice from one of these."""
        changed = [rows]
        for column, count in enumerate(self._choices):
            for value in range(count):
                changed.append(rows.copy())
                changed[-1][:, column] = value
        return self.corrected(np.concatenate(changed))

    def altered(self, rows: np.ndarray, changes: int, random: np.random.Generator) -> np.ndarray:
        """Change up to this many choices of each net at random."""
        rows, numbers = rows.copy(), np.arange(len(rows))
        open_columns = np.flatnonzero(np.array(self._choices) > 1)
        for _ in range(changes):
            columns = random.choice(open_columns, len(rows))
            rows[numbers, columns] = random.integers(np.array(self._choices)[columns])
        return self.corrected(rows)

    def sample(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw nets at random, at most `count`, since each is given once."""
        return self.corrected(random.integers(self._choices, size=(count, len(self._choices))).astype(np.int16))

    def trend(self, rows: np.ndarray) -> np.ndarray | None:
        """Give nets' losses by a measurement before any training, float (n,), 0 or above; None: nothing was measured."""
        return None

    def start(self, net, folder: Path) -> list[np.ndarray] | None:
        """Give the weights that a net's training in a folder starts from, the same at each call; None: random ones."""
        return None

    def alternatives(self, net) -> dict[str, dict[float, object]]:
        """Give the nets that differ from one in a single respect, by respect ("stage 1, level", "8x8, middle") and choice."""
        row, found = np.array([self.row_of(net)]), {}
        for stage, name in enumerate(self.stage_names[: len(net.levels)]):
            for kind, (column, choices) in self._respects(net, stage).items():
                nets = found[f"{name}, {kind}"] = {}
                for place, choice in enumerate(choices):
                    other = row.copy()
                    other[0, column + stage] = place
                    made = self.net_of(self.corrected(other)[0])
                    if self.choices_of(made)[stage][kind] == choice:  # else it was corrected
                        nets[choice] = made
        return found

    @property
    def teacher(self) -> tuple[Architecture, list[np.ndarray], str] | None:
        """Spec, weights and name of a float net that all nets learn from, or None."""
        return None

    def command_of(self, net) -> str | None:
        """Write the command that makes and trains a net, for its card; None: Python that does is written."""
        return None


@dataclass(frozen=True)
class Space(NetSpace):
    """The nets to choose from: every level in every stage, at each width, macro-architecture, number of blocks and channels.

    A net's row: its family; for each stage the index of its blocks among the family's choices, then of its channels; then
    the level of each stage. A macro-architecture with fewer stages than another is padded with zeros.

    Args:
        spec: gives input shape and classes, and the macro-architecture if `macros` is empty.
        widths: of the stem, at least one.
        macros: as `macro_from_text` reads them.
        blocks: of each stage; empty: the macro-architecture's own.
        channels: of each stage, as multiples of the macro-architecture's own, rounded to multiples of 8; empty: those alone.

    Raises:
        ValueError: a macro-architecture is unknown or does not fit the images, or a choice is out of its range.
    """

    spec: ModelSpec
    widths: tuple[int, ...]
    macros: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    channels: tuple[float, ...] = ()

    def __post_init__(self):
        if any(number < 1 for number in self.blocks):
            raise ValueError(f"blocks to choose from are {', '.join(map(str, self.blocks))}; a stage has at least 1")
        if not all(0 < factor <= 16 for factor in self.channels):
            given = ", ".join(f"{factor:g}" for factor in self.channels)
            raise ValueError(f"multiples of the stages' channels are {given}; each must be above 0 and at most 16")
        # The attributes of a NetSpace. Of the kinds of choice levels and widths are one.
        names = tuple(f"stage {n}" for n in range(1, 1 + max(len(family.stages) for family in self.families)))
        kinds = 1 + sum(map(bool, (self.macros, self.blocks, self.channels)))
        vars(self).update(stage_names=names, num_stages=len(names), kinds_of_choice=kinds, has_macros=bool(self.macros))
        vars(self).update(input_shape=self.spec.input_shape, num_classes=self.spec.num_classes)

    @functools.cached_property
    def families(self) -> tuple[Family, ...]:
        """The families, by macro-architecture, then width; of families with the same nets the first."""
        found = {}
        for macro, width in itertools.product(self.macros or (self.spec.macro,), self.widths):
            try:
                own = self.of_macro(macro, width)
            except ValueError as error:
                raise ValueError(f"macro-architecture {macro}: {error}" if self.macros else str(error)) from None
            numbers = stage_channels(width, own.stages)[1:]
            blocks = tuple(tuple(sorted({*self.blocks})) or (stage.blocks,) for stage in own.stages)
            channels = tuple(
                tuple(sorted({max(8, round(factor * number / 8) * 8) for factor in self.channels or (1,)}))
                for number in numbers
            )
            nearest = [
                (_nearest(stage.blocks, own_blocks), _nearest(number, own_channels))
                for stage, number, own_blocks, own_channels in zip(own.stages, numbers, blocks, channels)
            ]
            base = dataclasses.replace(own, stages=_stages(width, own.stages, nearest))
            key = base.width, base.stem_stride, base.last_channels, *(s[1::2] for s in own.stages), blocks, channels
            found.setdefault(key, Family(macro, base, own.stages, blocks, channels))
        return tuple(found.values())

    def of_macro(self, macro: str, width: int) -> ModelSpec:
        """Give the net of level 0 of a macro-architecture and a width, for the space's images and classes."""
        of_images = {"input_shape": self.spec.input_shape, "num_classes": self.spec.num_classes}
        return ModelSpec(0, width=width, macro=macro, **of_images)

    def net(self, level: int | tuple[int, ...], width: int | None = None) -> ModelSpec:
        """Give the net of a level, or of one level a stage, in the first family of a width; None: the first width."""
        width = self.widths[0] if width is None else width
        return at_level(next(family.base for family in self.families if family.base.width == width), level)

    def uniform(self) -> list[list[ModelSpec]]:
        """List the nets of uniform levels, coarse to fine, of each family."""
        return [uniform(family.base) for family in self.families]

    def with_levels(self, net: ModelSpec, levels: tuple[int, ...] | None) -> ModelSpec:
        """Give a net other levels; None: the last ones."""
        return uniform(net)[-1] if levels is None else at_level(net, levels)

    def spec_of(self, net: ModelSpec) -> ModelSpec:
        """Give what a net is built from."""
        return net

    def smallest_of_families(self) -> list[ModelSpec]:
        """List the net with the fewest MACs and weights of each family."""
        rows = np.array([(number, *[0] * 3 * self.num_stages) for number in range(len(self.families))])
        rows[:, 1 + 2 * self.num_stages :] = self.last_levels(rows)
        return [self.net_of(row) for row in rows]

    def count(self) -> int:
        """Count the nets, in time that grows with the stages and not with the nets."""
        total = 0
        for family in self.families:
            ways = {family.base.width: 1}  # by channels so far
            for blocks, channels in zip(family.blocks, family.channels):
                ways = {
                    after: sum(
                        number * (1 + (max(last_level(before), last_level(after)) if b > 1 else last_level(before)))
                        for before, number in ways.items()
                        for b in blocks
                    )
                    for after in channels
                }
            total += sum(ways.values())
        return total

    def _respects(self, net: ModelSpec, stage: int) -> dict[str, tuple[int, Sequence[int]]]:
        """Give the first column and the choices of each respect in which a net's stage may differ."""
        family, stages = self.families[self.row_of(net)[0]], self.num_stages
        found = {"level": (1 + 2 * stages, range(self._choices[-1]))}
        for kind, column, choices in (("blocks", 1, family.blocks), ("channels", 1 + stages, family.channels)):
            found |= {kind: (column, choices[stage])} if len(choices[stage]) > 1 else {}
        return found

    def choices_of(self, net: ModelSpec) -> list[dict[str, int]]:
        """Give each stage's level, blocks and channels."""
        numbers = stage_channels(net.width, net.stages)[1:]
        return [
            {"level": level, "blocks": stage.blocks, "channels": number}
            for level, stage, number in zip(net.levels, net.stages, numbers)
        ]

    # As text and as KerasTuner's values

    def describe(self) -> str:
        """Describe the choices in a line."""
        widths, blocks = (", ".join(map(str, numbers)) for numbers in (self.widths, self.blocks))
        factors = ", ".join(f"x{factor:g}" for factor in self.channels)
        parts = [f"levels of each stage, width {widths}"]
        parts += [f"macro-architecture {', '.join(self.macros) or self.spec.macro}"]
        parts += [f"blocks of each stage {blocks}"] * bool(blocks) + [f"channels of each stage {factors}"] * bool(
            factors
        )
        return f"{self.count():,} nets: {'; '.join(parts)}"

    def columns(self, net: ModelSpec) -> dict:
        """Give a net's columns in a table of results."""
        kind = {"macro": net.macro, "level": level_text(net.levels), "width": net.width}
        return {"name": net.name, **kind, "macs": macs(net)}

    def identity(self) -> dict:
        """Give what identifies the space: a search continues only in the folder of a search over an equal one."""
        spec = json.loads(self.spec.to_json())
        of_spec = ("input_shape", "num_classes", "stages", "stem_stride", "last_channels")
        of_space = ("widths", "macros", "blocks", "channels")
        return {
            **{name: spec[name] for name in of_spec if name in spec},
            **{name: list(getattr(self, name)) for name in of_space if getattr(self, name)},
        }

    def values_to_choose(self) -> dict[str, list]:
        """List the values of KerasTuner's hyperparameters `stage1`, `stage2` and so on (levels) and, if there are several, `width`."""
        lasts = map(max, zip(*(own[-1].levels for own in self.uniform())))
        values = {f"stage{number}": list(range(last + 1)) for number, last in enumerate(lasts, 1)}
        return values | ({"width": list(self.widths)} if len(self.widths) > 1 else {})

    def values_of(self, net: ModelSpec) -> dict:
        """Give the values of a net's hyperparameters."""
        values = {f"stage{number}": level for number, level in enumerate(net.levels, 1)}
        values |= {"width": net.width} if len(self.widths) > 1 else {}
        return values | ({"macro": net.macro} if self.has_more_than_levels else {})

    def net_from(self, values: Mapping) -> ModelSpec:
        """Give the net of hyperparameter values; a level above a stage's last is clipped to it."""
        width = int(values.get("width", self.widths[0]))
        base = self.of_macro(values["macro"], width) if "macro" in values else self.net(0, width)
        levels = (int(values[f"stage{number}"]) for number in range(1, len(base.stages) + 1))
        return at_level(base, tuple(min(level, max_level(base)) for level in levels))

    # Rows

    def net_of(self, row: Sequence[int]) -> ModelSpec:
        """Give the net of a row."""
        return _net_of(self, tuple(map(int, row)))

    def row_of(self, net: ModelSpec) -> tuple[int, ...]:
        """Give the row of a net. Raises ValueError where the space has no such net."""
        numbers = stage_channels(net.width, net.stages)[1:]
        for index, family in enumerate(self.families):
            if (net.width, len(net.stages)) != (family.base.width, len(family.stages)):
                continue
            with contextlib.suppress(ValueError):  # of a number that is no choice
                blocks = [own.index(stage.blocks) for own, stage in zip(family.blocks, net.stages)]
                channels = [own.index(number) for own, number in zip(family.channels, numbers)]
                padding = [0] * (self.num_stages - len(net.stages))
                row = (index, *blocks, *padding, *channels, *padding, *net.levels, *padding)
                if self.net_of(row) == net:
                    return row
        raise ValueError(f"{net.name} is no net of this space")

    @functools.cached_property
    def _tables(self) -> tuple[np.ndarray, ...]:
        """Blocks and channels by (family, stage, index), padded with 0, and the pixels behind each stage."""
        places = max(len(own) for family in self.families for own in (*family.blocks, *family.channels))
        blocks, channels = np.zeros((2, len(self.families), self.num_stages, places), int)
        pixels = np.zeros((len(self.families), self.num_stages), int)
        for index, family in enumerate(self.families):
            shapes = {layer.name: layer.output_shape for layer in family.base.plan()}
            for stage, (own_blocks, own_channels) in enumerate(zip(family.blocks, family.channels)):
                blocks[index, stage, : len(own_blocks)] = own_blocks
                channels[index, stage, : len(own_channels)] = own_channels
                pixels[index, stage] = math.prod(shapes[f"stage{stage + 1}_block1_spatial"][:2])
        return blocks, channels, pixels

    def values(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Give blocks, channels and levels of rows, each int (n, stages), and the channels before each stage."""
        blocks, channels, levels = np.split(rows[:, 1:], 3, axis=1)
        family, stage = rows[:, :1], np.arange(self.num_stages)
        blocks, channels = (table[family, stage, places] for table, places in zip(self._tables, (blocks, channels)))
        widths = np.array([family.base.width for family in self.families])[family]
        return blocks, channels, levels, np.concatenate([widths, channels[:, :-1]], axis=1)

    def axes(self, rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Give the choices that may change accuracy: (kind, a number for each row); kinds are "level", "name", "ratio"."""
        blocks, channels, levels, _ = self.values(rows)
        widths = np.array([family.base.width for family in self.families])[rows[:, 0]]
        found = [("level", own) for own in levels.T]
        if len(self.widths) > 1:
            found.append(("ratio", widths))
        if len(self.macros) > 1:
            names = np.array([self.macros.index(family.macro) for family in self.families])
            found.append(("name", names[rows[:, 0]]))
        if self.has_more_than_levels:
            ratios = np.maximum(blocks, 0.5).T, (np.maximum(channels, 4) / widths[:, None]).T
            found += [("ratio", own) for both in ratios for own in both]
        return found

    def last_levels(self, rows: np.ndarray) -> np.ndarray:
        """Give the last level of each stage, int (n, stages)."""
        blocks, channels, _, before = self.values(rows)
        before, channels = self._lasts[before // 8], self._lasts[channels // 8]
        return np.where(blocks > 1, np.maximum(before, channels), before) * (blocks > 0)

    def count_macs(self, rows: np.ndarray) -> np.ndarray:
        """Count the MACs, int64 (n,): a sum over stages, each of which depends on the channels before it, too."""
        blocks, channels, levels, before = self.values(rows)
        groups = np.ones((self._choices[-1], len(self._lasts)), int)  # at level 0, too
        for level, eighth in itertools.product(*(range(1, size) for size in groups.shape)):
            groups[level, eighth] = groups_at(level, 8 * eighth)

        def block(inside):
            spatial = 9 * inside * np.where(levels > 0, inside, channels) // groups[levels, inside // 8]
            return spatial + np.where(levels > 0, inside * channels, 0)

        stages = self._tables[2][rows[:, 0]] * (block(before) + np.maximum(blocks - 1, 0) * block(channels))
        fixed, slope, last = np.array([_macs_around(family) for family in self.families])[rows[:, 0]].T
        return fixed + slope * channels[np.arange(len(rows)), last] + stages.sum(1)

    def rows(self) -> np.ndarray:
        """Give the rows of all nets, int (n, 1 + 3 stages)."""
        found = []
        for index, family in enumerate(self.families):
            padding = [1] * (self.num_stages - len(family.stages))
            places = [*map(len, family.blocks), *padding, *map(len, family.channels), *padding]
            deepest = max(map(last_level, (family.base.width, *itertools.chain(*family.channels))))
            levels = [*[1 + deepest] * len(family.stages), *padding]
            own = np.indices([1, *places, *levels], np.int16).reshape(1 + 3 * self.num_stages, -1).T
            own[:, 0] = index
            found.append(own[(own[:, -self.num_stages :] <= self.last_levels(own)).all(1)])
        return np.concatenate(found)

    def corrected(self, rows: np.ndarray) -> np.ndarray:
        """Clip indices and levels to the last choice; give each net once."""
        rows, stages = rows.copy(), self.num_stages
        for table, own in zip(self._tables, (rows[:, 1 : 1 + stages], rows[:, 1 + stages : 1 + 2 * stages])):
            np.minimum(own, np.maximum((table[rows[:, 0]] > 0).sum(2) - 1, 0), out=own)
        rows[:, 1 + 2 * stages :] = np.minimum(rows[:, 1 + 2 * stages :], self.last_levels(rows))
        return distinct(rows)

    @functools.cached_property
    def _choices(self) -> tuple[int, ...]:
        """Count the choices in each column, in the family with the most."""
        blocks, channels = ((table > 0).sum(2).max(0) for table in self._tables[:2])
        return (len(self.families), *blocks, *channels, *[self._lasts.max() + 1] * self.num_stages)

    @functools.cached_property
    def _lasts(self) -> np.ndarray:
        """The last level of each number of channels, divided by 8, up to the most anywhere; 0 for none."""
        return np.array([0, *map(last_level, range(8, 1 + max(self._tables[1].max(), *self.widths), 8))])


def distinct(rows: np.ndarray) -> np.ndarray:
    """Drop duplicate rows, by a random projection to 64 bits, which is much faster than sorting rows."""
    weights = np.random.default_rng(0).integers(-(2**62), 2**62, rows.shape[1])
    return rows[np.unique(rows.astype(np.int64) @ weights, return_index=True)[1]]


def _macs_around(family: Family) -> tuple[int, int, int]:
    """Give the MACs of the stem and the rest behind the stages: fixed ones, those for each last channel, the last stage."""
    stem, *rest = (row for row in cost_rows(family.base) if not row.layer.startswith("stage"))
    slope = rest[0].macs // stage_channels(family.base.width, family.base.stages)[-1]
    return stem.macs + sum(row.macs for row in rest[1:]), slope, len(family.stages) - 1


def _nearest(number, choices):
    return min(choices, key=lambda choice: abs(choice - number))


def _stages(width: int, stages: Sequence[Stage], choices: Sequence[tuple[int, int]]) -> tuple[Stage, ...]:
    """Give stages other blocks and channels; a stage that can have no residual sum any more is not residual."""
    made, before = [], width
    for stage, (blocks, channels) in zip(stages, choices):
        residual = stage.residual and (blocks > 1 or (stage.stride == 1 and before == channels))
        made.append(Stage(blocks, stage.stride, channels, residual))
        before = channels
    return tuple(made)


@functools.lru_cache(maxsize=100_000)
def _net_of(space: Space, row: tuple[int, ...]) -> ModelSpec:
    family, stages = space.families[row[0]], space.num_stages
    blocks, channels, levels = (row[1 + part * stages :][: len(family.stages)] for part in range(3))
    chosen = [
        (own_blocks[i], own_channels[j])
        for i, j, own_blocks, own_channels in zip(blocks, channels, family.blocks, family.channels)
    ]
    made = _stages(family.base.width, family.stages, chosen)
    return dataclasses.replace(family.base, level=levels, stages=made)


@functools.lru_cache(maxsize=100_000)
def at_level(net: ModelSpec, level: int | tuple[int, ...]) -> ModelSpec:
    """Give a net at another level, or at one level a stage."""
    return dataclasses.replace(net, level=level)


def uniform(net: ModelSpec) -> list[ModelSpec]:
    """List a net at all uniform levels, coarse to fine."""
    return [at_level(net, level) for level in range(max_level(net) + 1)]


@functools.lru_cache(maxsize=100_000)
def macs(net) -> int:
    """Give the MACs of a net of a space."""
    return count_macs(net) if isinstance(net, ModelSpec) else net.macs
