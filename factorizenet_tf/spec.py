"""What a net is, as data: levels, stages, and the plan of convolutions that every other module reads."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import re
from dataclasses import dataclass
from typing import NamedTuple

from .macro import MACROS, Stage, default_macro, macro_from_text


class Layer(NamedTuple):
    """One convolution or dense layer of a plan, the BatchNorm and activation behind it included.

    Shapes are (height, width, channels).
    """

    name: str
    kind: str  # "conv", "grouped", "depthwise", "pointwise" or "dense"
    kernel: int
    stride: int
    groups: int
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]
    shortcut: str | None = None  # the layer whose output is added before the activation


def groups_at(level: int, channels: int) -> int:
    """Give the groups of a 3x3 convolution over `channels` at a level of at least 1: 2**level, or one a channel.

    `channels` groups (depthwise) is what remains where 2**level does not divide the channels or is not below them.
    Source: our choice (the paper's abstract fixes no group counts).
    """
    groups = 2**level
    return groups if groups < channels and channels % groups == 0 else channels


def last_level(channels: int) -> int:
    """Give the first level at which `channels` channels are convolved depthwise; deeper ones change nothing."""
    level = 1
    while groups_at(level, channels) < channels:
        level += 1
    return level


@dataclass(frozen=True, init=False)
class ModelSpec:
    """One FactorizeNet: which level of depth factorization at which macro-architecture.

    A stem (3x3 convolution to `width` channels), the stages, optionally a wide pointwise convolution, global average
    pooling and a dense layer. Specs that build the same net are equal: `level` becomes an int if one level describes all
    stages, and a stage's channels become None if they are the default.

    Args:
        level: level of all stages, or a tuple with one a stage. 0 is the regular 3x3 convolution; k >= 1 a 3x3
            convolution in 2**k groups and a pointwise one; the last level, `max_level(spec)`, is depthwise separable.
            A stage's level above its own last one is clipped to it.
        width: channels of the stem, a multiple of 8.
        input_shape: (height, width, channels) of an image, 1 or 3 channels.
        num_classes: number of logits, at least 2.
        macro: macro-architecture, as `macro_from_text` reads it; in its place `stages`, `stem_stride` and
            `last_channels` may be given. None of them: "base", or "early" for images of 64x64 and more.
        stages: a `Stage`, or (blocks, stride), for each.
        stem_stride: 1 or 2; 1 where `stages` are given.
        last_channels: of a pointwise convolution before the pooling, a multiple of 8; None for no such convolution.

    Attributes:
        levels: the level of each stage, clipped to the stage's own last one.

    Raises:
        ValueError: an argument is out of its range; the message has the value and the range.
        TypeError: an argument is of another type.

    Source: levels and macro-architectures are our choice; the strategy is arXiv 2011.14586.
    """

    level: int | tuple[int, ...]
    width: int
    input_shape: tuple[int, int, int]
    num_classes: int
    stages: tuple[Stage, ...]
    stem_stride: int
    last_channels: int | None

    def __init__(
        self,
        level: int | tuple[int, ...] = 2,
        *,
        width: int = 16,
        input_shape: tuple[int, int, int] = (32, 32, 3),
        num_classes: int = 10,
        macro: str | None = None,
        stages: tuple[tuple, ...] | None = None,
        stem_stride: int | None = None,
        last_channels: int | None = None,
    ):
        width = _channels("width", width)
        input_shape = _input_shape(input_shape)
        if stages is None:
            if stem_stride is not None or last_channels is not None:
                raise ValueError("stem_stride and last_channels go with stages; give them, or the macro alone")
            stages, stem_stride, last_channels, _ = macro_from_text(
                default_macro(input_shape) if macro is None else macro, width
            )
        elif macro is not None:
            raise ValueError(f"macro is {macro!r} and stages are given; give one of them")
        stem_stride = 1 if stem_stride is None else _integer("stem_stride", stem_stride)
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride is {stem_stride}; it must be 1 or 2")
        if last_channels is not None:
            last_channels = _channels("last_channels", last_channels)
        stages = _stages(stages, width)
        stride = stem_stride * math.prod(stage.stride for stage in stages)
        if min(input_shape[:2]) < stride:
            size, remedy = "x".join(map(str, input_shape[:2])), f"at least {stride}x{stride} or fewer strides of 2"
            raise ValueError(f"input of {size} is smaller than the strides' product {stride}; use images of {remedy}")
        num_classes = _integer("num_classes", num_classes)
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; a classifier needs at least 2")
        lasts = _last_levels(width, stages)
        levels = _levels(level, lasts)
        level = max(levels) if levels == _levels(max(levels), lasts) else levels
        vars(self).update(level=level, levels=levels, width=width, input_shape=input_shape, num_classes=num_classes)
        vars(self).update(stages=stages, stem_stride=stem_stride, last_channels=last_channels)

    @property
    def macro(self) -> str:
        """The macro-architecture: a row's name in `MACROS`, else its parts joined by dots; `macro_from_text` reads it."""
        return _macro_name(self.width, self.stages, self.stem_stride, self.last_channels)

    @property
    def name(self) -> str:
        """`fnet-<macro>-l<level>-x<width / 16>`, without the macro if it is "base", without the last part if width is 16.

        The name does not depend on input shape and classes.
        """
        macro = "" if self.macro == "base" else f"{self.macro}-"
        return f"fnet-{macro}l{level_text(self.level)}" + ("" if self.width == 16 else f"-x{self.width / 16:g}")

    def plan(self) -> tuple[Layer, ...]:
        """List every convolution and the dense layer, in order: what `build` builds and the closed-form cost counts."""
        return tuple(_plan(self))

    def to_json(self) -> str:
        """Write the spec as a JSON object that `spec_from_json` reads back."""
        fields = {
            "family": "factorizenet",
            "level": self.level,
            "width": self.width,
            "input_shape": self.input_shape,
            "num_classes": self.num_classes,
            "stages": [stage if any(stage[2:]) else stage[:2] for stage in self.stages],
        }
        if self.stem_stride != 1:
            fields["stem_stride"] = self.stem_stride
        if self.last_channels is not None:
            fields["last_channels"] = self.last_channels
        return json.dumps(fields, indent=2) + "\n"


@dataclass(frozen=True, kw_only=True)
class ResNet8:
    """The spec of MLPerf Tiny's ResNet-8: 12.5 M MACs and 78 k parameters at 32x32.

    Source: Banbury et al., arXiv 2106.07597, image classification; a ResNet v1 (He et al., 1512.03385) of three stacks.
    """

    input_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    name: str = "baseline-resnet8"

    def to_json(self) -> str:
        """Write the spec as JSON that `spec_from_json` reads back."""
        fields = {"family": "resnet8", "input_shape": self.input_shape, "num_classes": self.num_classes}
        return json.dumps(fields, indent=2) + "\n"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The spec of a net that is no `ModelSpec`: its layers as plain data, as `models.architecture` reads and builds them.

    Args:
        name: of the net.
        input_shape: (height, width, channels) of an image.
        num_classes: number of logits.
        layers: JSON of a list, in order, of [name, stock class, fields, names of the layers that it reads].

    Raises:
        ValueError: the name has other characters than letters, digits, dots, hyphens and underscores, or `layers` is no such
            list.
    """

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    layers: str = dataclasses.field(repr=False)

    def __post_init__(self):
        object.__setattr__(self, "input_shape", _input_shape(self.input_shape))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"the net's name is {self.name!r}; use letters, digits, dots, hyphens and underscores")
        kinds = (str, str, dict, list)
        try:
            is_list = all(tuple(map(type, layer)) == kinds for layer in json.loads(self.layers))
        except (ValueError, TypeError):
            is_list = False
        if not is_list:
            kind = "JSON of [name, class, fields, inputs]"
            raise ValueError(f"layers of {self.name} is {self.layers[:80]!r}; it must be {kind}")

    def with_head(self, num_classes: int) -> Architecture:
        """Replace the number of classes and, if the last layer is dense, its units."""
        *others, (name, kind, fields, inputs) = json.loads(self.layers)
        fields |= {"units": num_classes} if kind == "Dense" else {}
        layers = json.dumps([*others, [name, kind, fields, inputs]], separators=(",", ":"))
        return dataclasses.replace(self, num_classes=num_classes, layers=layers)

    def to_json(self) -> str:
        """Write the spec as JSON that `spec_from_json` reads back."""
        fields = {"family": "layers", **vars(self), "layers": json.loads(self.layers)}
        return json.dumps(fields) + "\n"


def level_text(level: int | tuple[int, ...]) -> str:
    """Write a level as names, tables and options have it: "2", or one a stage joined by dots, "1.2.4"."""
    return ".".join(map(str, level)) if isinstance(level, tuple) else str(level)


def level_from_text(text: str) -> int | tuple[int, ...]:
    """Read what `level_text` wrote.

    Raises:
        ValueError: it is neither a number nor numbers joined by dots.
    """
    try:
        levels = tuple(int(part) for part in text.split("."))
    except ValueError:
        raise ValueError(f"level is {text!r}; it must be a number, or one a stage joined by dots, e.g. 1.2.4") from None
    return levels[0] if len(levels) == 1 else levels


def max_level(spec: ModelSpec) -> int:
    """Give the last level of a spec's macro-architecture: groups = channels (depthwise) in every block."""
    return max(_last_levels(spec.width, spec.stages))


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):  # NumPy's integers are, its bool is not
        raise TypeError(f"{name} is {value!r}; it must be an int")
    return int(value)


def _channels(name: str, value: object) -> int:
    value = _integer(name, value)
    if value < 8 or value % 8:
        raise ValueError(f"{name} is {value}; it must be a positive multiple of 8, e.g. {max(8, round(value / 8) * 8)}")
    return value


def _stages(stages: object, width: int) -> tuple[Stage, ...]:
    try:
        given = tuple(Stage(*stage) for stage in stages)
    except TypeError:
        raise TypeError(f"stages is {stages!r}; it must be (blocks, stride) pairs, e.g. ((1, 1), (3, 2))") from None
    if not given:
        raise ValueError("stages is empty; give at least one (blocks, stride) pair")
    checked = []
    implied = before = width
    for i, (blocks, stride, channels, residual) in enumerate(given, 1):
        blocks, stride = _integer(f"blocks of stage {i}", blocks), _integer(f"stride of stage {i}", stride)
        if blocks < 1:
            raise ValueError(f"stage {i} has {blocks} blocks; it needs at least 1")
        if stride not in (1, 2):
            raise ValueError(f"stage {i} has stride {stride}; it must be 1 or 2")
        implied *= stride
        after = implied if channels is None else _channels(f"the number of channels of stage {i}", channels)
        if not isinstance(residual, bool):
            raise TypeError(f"residual of stage {i} is {residual!r}; it must be True or False")
        if residual and blocks == 1 and (stride != 1 or before != after):
            what = f"its one block has stride {stride} and {before} channels in, {after} out"
            remedy = "give it another block, or stride 1 and equal channels"
            raise ValueError(f"stage {i} is to have residual sums, but {what}; {remedy}")
        checked.append(Stage(blocks, stride, None if after == implied else after, residual))
        before = after
    return tuple(checked)


def _input_shape(input_shape: object) -> tuple[int, int, int]:
    if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 3:
        raise ValueError(f"input_shape is {input_shape!r}; it must be (height, width, channels), e.g. (32, 32, 3)")
    height, width, channels = (_integer("input_shape", v) for v in input_shape)
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; images have 1 or 3")
    return height, width, channels


@functools.lru_cache(maxsize=1024)
def _macro_name(width: int, stages: tuple[Stage, ...], stem_stride: int, last_channels: int | None) -> str:
    for name, macro in MACROS.items():
        row = macro.at(width)
        if (_stages(row.stages, width), row.stem_stride, row.last_channels) == (stages, stem_stride, last_channels):
            return name
    parts = [f"s{stem_stride}"] * (stem_stride != 1) + [str(stage) for stage in stages]
    return ".".join(parts + [f"p{last_channels}"] * (last_channels is not None))


def stage_channels(width: int, stages: tuple[Stage, ...]) -> list[int]:
    """Give the channels of the stem and behind each stage."""
    channels, implied = [width], width
    for stage in stages:
        implied *= stage.stride
        channels.append(stage.channels or implied)
    return channels


@functools.lru_cache(maxsize=1024)
def _last_levels(width: int, stages: tuple[Stage, ...]) -> tuple[int, ...]:
    """Each stage's last level: the deepest that still changes one of its blocks."""
    channels = stage_channels(width, stages)
    return tuple(
        max(last_level(before), last_level(inside) if stage.blocks > 1 else 1)
        for stage, before, inside in zip(stages, channels, channels[1:])
    )


def _levels(level: object, lasts: tuple[int, ...]) -> tuple[int, ...]:
    deepest = max(lasts)
    if isinstance(level, (tuple, list)):
        if len(level) != len(lasts):
            stages = f"there are {len(lasts)} stages, so give {len(lasts)}"
            raise ValueError(f"level {'.'.join(map(str, level))} has {len(level)} entries; {stages}")
        levels = tuple(_integer("level", v) for v in level)
    else:
        levels = (_integer("level", level),) * len(lasts)
    for value in levels:
        if not 0 <= value <= deepest:
            raise ValueError(f"level is {value}; at these widths levels go from 0 (regular) to {deepest} (depthwise)")
    return tuple(min(value, last) for value, last in zip(levels, lasts))


def _plan(spec: ModelSpec):
    height, width, _channels = spec.input_shape
    shape = (-(-height // spec.stem_stride), -(-width // spec.stem_stride), spec.width)
    yield Layer("stem", "conv", 3, spec.stem_stride, 1, spec.input_shape, shape)
    before = "stem"
    channels = stage_channels(spec.width, spec.stages)[1:]
    for number, (stage, filters, level) in enumerate(zip(spec.stages, channels, spec.levels), 1):
        for block in range(1, stage.blocks + 1):
            stride = stage.stride if block == 1 else 1
            out = (-(-shape[0] // stride), -(-shape[1] // stride), filters)
            name = f"stage{number}_block{block}"
            shortcut = before if stage.residual and out == shape else None
            if level == 0:
                before = f"{name}_spatial"
                yield Layer(before, "conv", 3, stride, 1, shape, out, shortcut)
            else:
                groups = groups_at(level, shape[2])
                kind = "depthwise" if groups == shape[2] else "grouped"
                middle = (*out[:2], shape[2])
                before = f"{name}_pointwise"
                yield Layer(f"{name}_spatial", kind, 3, stride, groups, shape, middle)
                yield Layer(before, "pointwise", 1, 1, 1, middle, out, shortcut)
            shape = out
    if spec.last_channels is not None:
        out = (*shape[:2], spec.last_channels)
        yield Layer("last_pointwise", "pointwise", 1, 1, 1, shape, out)
        shape = out
    yield Layer("logits", "dense", 1, 1, 1, (1, 1, shape[2]), (1, 1, spec.num_classes))


def spec_from_json(text: str):
    """Read the spec, a `ModelSpec`, an `Architecture` or a baseline's, that its `to_json` wrote.

    Raises:
        ValueError: the text is no spec; the message says what is wrong with it.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not a spec: no JSON ({error})") from None
    family = fields.get("family") if isinstance(fields, dict) else None
    if family not in ("factorizenet", "resnet8", "layers"):
        raise ValueError(f"not a spec of this package: {text[:80]!r}")
    try:
        own = {"input_shape": tuple(fields["input_shape"]), "num_classes": fields["num_classes"]}
        if family == "resnet8":
            return ResNet8(**own)
        if family == "layers":
            layers = json.dumps(fields["layers"], separators=(",", ":"))
            return Architecture(name=fields["name"], layers=layers, **own)
        own |= {field: fields[field] for field in ("level", "width", "stages")}
        return ModelSpec(**own, stem_stride=fields.get("stem_stride"), last_channels=fields.get("last_channels"))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a spec: {error!r} in {text[:200]!r}") from None
