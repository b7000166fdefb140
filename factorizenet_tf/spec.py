"""What a net is, as data: levels, stages, and the plan of convolutions that every other module reads."""

from __future__ import annotations

import functools
import json
import math
import numbers
from dataclasses import dataclass
from typing import NamedTuple


class Stage(NamedTuple):
    """A run of equal blocks.

    The first block has the stage's stride; the output has width times the product of all strides so far as
    channels (they double where the image is halved).
    """

    blocks: int
    stride: int


DEFAULT_STAGES = (Stage(3, 2), Stage(2, 2), Stage(2, 1))


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

    A stem (3x3 convolution to `width` channels), the stages, global average pooling and a dense layer. Specs that
    build the same net are equal: `level` is an int wherever one level describes all stages, else a tuple.

    Args:
        level: level of all stages, or a tuple with one a stage. 0 is the regular 3x3 convolution; k >= 1 a 3x3
            convolution in 2**k groups and a pointwise one; the last level, `max_level(spec)`, is depthwise separable.
            A stage's level above its own last one is clipped to it.
        width: channels of the stem, a multiple of 8.
        input_shape: (height, width, channels) of an image, 1 or 3 channels.
        num_classes: number of logits, at least 2.
        stages: (blocks, stride) of each stage; stride 1 or 2. Channels double with each stride of 2.

    Raises:
        ValueError: an argument is out of its range; the message has the value and the range.
        TypeError: an argument is of another type.

    Source: levels and macro-architecture are our choice; the strategy is arXiv 2011.14586.
    """

    level: int | tuple[int, ...]
    width: int
    input_shape: tuple[int, int, int]
    num_classes: int
    stages: tuple[Stage, ...]

    def __init__(
        self,
        level: int | tuple[int, ...] = 2,
        *,
        width: int = 16,
        input_shape: tuple[int, int, int] = (32, 32, 3),
        num_classes: int = 10,
        stages: tuple[tuple[int, int], ...] = DEFAULT_STAGES,
    ):
        width = _integer("width", width)
        if width < 8 or width % 8:
            raise ValueError(
                f"width is {width}; it must be a positive multiple of 8, e.g. {max(8, round(width / 8) * 8)}"
            )
        stages = _stages(stages)
        input_shape = _input_shape(input_shape, stages)
        num_classes = _integer("num_classes", num_classes)
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; a classifier needs at least 2")
        lasts = _last_levels(width, stages)
        levels = _levels(level, lasts)
        uniform = max(levels)
        is_uniform = levels == tuple(min(uniform, last) for last in lasts)
        object.__setattr__(self, "level", uniform if is_uniform else levels)
        object.__setattr__(self, "width", width)
        object.__setattr__(self, "input_shape", input_shape)
        object.__setattr__(self, "num_classes", num_classes)
        object.__setattr__(self, "stages", stages)

    @property
    def levels(self) -> tuple[int, ...]:
        """The level of each stage, clipped to the stage's own last one."""
        return _levels(self.level, _last_levels(self.width, self.stages))

    @property
    def name(self) -> str:
        """`fnet-l<level>`, with `-x<width / 16>` where the width is not 16. Says nothing of input, classes or stages."""
        return f"fnet-l{level_text(self.level)}" + ("" if self.width == 16 else f"-x{self.width / 16:g}")

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
            "stages": self.stages,
        }
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


def _stages(stages: object) -> tuple[Stage, ...]:
    try:
        given = tuple(Stage(*stage) for stage in stages)
    except TypeError:
        raise TypeError(f"stages is {stages!r}; it must be (blocks, stride) pairs, e.g. ((1, 1), (3, 2))") from None
    if not given:
        raise ValueError("stages is empty; give at least one (blocks, stride) pair")
    pairs = []
    for i, (blocks, stride) in enumerate(given, 1):
        pair = Stage(_integer(f"blocks of stage {i}", blocks), _integer(f"stride of stage {i}", stride))
        if pair.blocks < 1:
            raise ValueError(f"stage {i} has {blocks} blocks; it needs at least 1")
        if pair.stride not in (1, 2):
            raise ValueError(f"stage {i} has stride {stride}; it must be 1 or 2")
        pairs.append(pair)
    return tuple(pairs)


def _input_shape(input_shape: object, stages: tuple[Stage, ...]) -> tuple[int, int, int]:
    if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 3:
        raise ValueError(f"input_shape is {input_shape!r}; it must be (height, width, channels), e.g. (32, 32, 3)")
    height, width, channels = (_integer("input_shape", v) for v in input_shape)
    if channels not in (1, 3):
        raise ValueError(f"input_shape has {channels} channels; images have 1 or 3")
    stride = math.prod(s.stride for s in stages)
    if min(height, width) < stride:
        raise ValueError(
            f"input of {height}x{width} is smaller than the strides' product {stride}; "
            f"use images of at least {stride}x{stride} or fewer stages of stride 2"
        )
    return height, width, channels


@functools.lru_cache(maxsize=1024)
def _last_levels(width: int, stages: tuple[Stage, ...]) -> tuple[int, ...]:
    """Each stage's last level: the deepest that still changes one of its blocks."""
    lasts = []
    channels = width
    for stage in stages:
        inside = channels * stage.stride
        lasts.append(max(last_level(channels), last_level(inside) if stage.blocks > 1 else 1))
        channels = inside
    return tuple(lasts)


def _levels(level: object, lasts: tuple[int, ...]) -> tuple[int, ...]:
    deepest = max(lasts)
    if isinstance(level, (tuple, list)):
        if len(level) != len(lasts):
            raise ValueError(
                f"level {tuple(level)} has {len(level)} entries; there are {len(lasts)} stages, so give {len(lasts)}"
            )
        levels = tuple(_integer("level", v) for v in level)
    else:
        levels = (_integer("level", level),) * len(lasts)
    for value in levels:
        if not 0 <= value <= deepest:
            raise ValueError(f"level is {value}; at these widths levels go from 0 (regular) to {deepest} (depthwise)")
    return tuple(min(value, last) for value, last in zip(levels, lasts))


def _plan(spec: ModelSpec):
    height, width, _channels = spec.input_shape
    shape = (height, width, spec.width)
    yield Layer("stem", "conv", 3, 1, 1, spec.input_shape, shape)
    for number, (stage, level) in enumerate(zip(spec.stages, spec.levels), 1):
        filters = shape[2] * stage.stride
        for block in range(1, stage.blocks + 1):
            stride = stage.stride if block == 1 else 1
            out = (-(-shape[0] // stride), -(-shape[1] // stride), filters)
            name = f"stage{number}_block{block}"
            if level == 0:
                yield Layer(f"{name}_spatial", "conv", 3, stride, 1, shape, out)
            else:
                groups = groups_at(level, shape[2])
                kind = "depthwise" if groups == shape[2] else "grouped"
                middle = (*out[:2], shape[2])
                yield Layer(f"{name}_spatial", kind, 3, stride, groups, shape, middle)
                yield Layer(f"{name}_pointwise", "pointwise", 1, 1, 1, middle, out)
            shape = out
    yield Layer("logits", "dense", 1, 1, 1, (1, 1, shape[2]), (1, 1, spec.num_classes))


def spec_from_json(text: str):
    """Read the spec, a `ModelSpec` or a baseline's, that its `to_json` wrote.

    Raises:
        ValueError: the text is no spec; the message says what is wrong with it.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not a spec: no JSON ({error})") from None
    family = fields.get("family") if isinstance(fields, dict) else None
    if family not in ("factorizenet", "resnet8"):
        raise ValueError(f"not a spec of this package: {text[:80]!r}")
    try:
        if family == "resnet8":
            return ResNet8(input_shape=tuple(fields["input_shape"]), num_classes=fields["num_classes"])
        return ModelSpec(
            tuple(fields["level"]) if isinstance(fields["level"], list) else fields["level"],
            width=fields["width"],
            input_shape=tuple(fields["input_shape"]),
            num_classes=fields["num_classes"],
            stages=tuple(tuple(stage) for stage in fields["stages"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a spec: {error!r} in {text[:200]!r}") from None
