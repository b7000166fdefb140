"""Macro-architectures (stem, stages, strides, channels): a table of named ones, and how to read one from text."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

__all__ = ["DEFAULT_STAGES", "MACROS", "Macro", "Stage", "default_macro", "macro_from_text"]


class Stage(NamedTuple):
    """A run of equal blocks.

    Args:
        blocks: how many.
        stride: of the first block, 1 or 2.
        channels: of the output, a multiple of 8. None: width times the product of all stages' strides so far (they
            double where the image is halved).
        residual: add each block's input to its output before the last activation, in all blocks where both have the
            same shape.
    """

    blocks: int
    stride: int
    channels: int | None = None
    residual: bool = False

    def __str__(self) -> str:
        """Write the stage as names and options have it: "2x2", "4x2c64", "4x2c64r" with residual sums."""
        channels = "" if self.channels is None else f"c{self.channels}"
        return f"{self.blocks}x{self.stride}{channels}{'r' * self.residual}"


DEFAULT_STAGES = (Stage(3, 2), Stage(2, 2), Stage(2, 1))


class Macro(NamedTuple):
    """A macro-architecture: all of a net but its levels.

    Args:
        stages: `Stage`s; their channels are those at width 16, and scale with it.
        stem_stride: of the stem's convolution, 1 or 2.
        last_channels: of a pointwise convolution before the pooling, at width 16; None for no such convolution.
        source: where it comes from.
    """

    stages: tuple[Stage, ...]
    stem_stride: int = 1
    last_channels: int | None = None
    source: str = "our choice"

    def at(self, width: int) -> Macro:
        """Scale its channels to a width: times width / 16, rounded to a multiple of 8."""

        def scaled(channels):
            return None if channels is None else max(8, round(channels * width / 128) * 8)

        stages = tuple(stage._replace(channels=scaled(stage.channels)) for stage in self.stages)
        return self._replace(stages=stages, last_channels=scaled(self.last_channels))


# The rows' order is that of `--help`. A net's name has its row's, but for "base".
MACROS = {
    "base": Macro(DEFAULT_STAGES, source="our choice: what the published levels are compared in, at 32x32"),
    "early": Macro(
        (Stage(2, 2), Stage(2, 2), Stage(2, 2), Stage(1, 2)), stem_stride=2, source="our choice, for 64x64 and more"
    ),
    "mobilenetv1": Macro(
        (Stage(1, 1, 32), Stage(2, 2, 64), Stage(2, 2, 128), Stage(6, 2, 256), Stage(2, 2, 512)),
        stem_stride=2,
        source="Howard et al., arXiv 1704.04861; at its last level and width 8 MobileNetV1-0.25, at width 32 MobileNetV1",
    ),
}
EARLY_STRIDES_FROM = 64  # pixels of the shorter side


def default_macro(input_shape: tuple[int, int, int]) -> str:
    """Name the macro-architecture used by default for images (height, width, channels)."""
    return "early" if min(input_shape[:2]) >= EARLY_STRIDES_FROM else "base"


def macro_from_text(text: str, width: int = 16) -> Macro:
    """Read a macro-architecture: the name of a row of `MACROS`, or its parts joined by commas or dots.

    A part is a stage as `Stage` writes it ("2x2", "4x2c64r"), "s2" in front of them (the stem's stride) or "p128" behind
    them (channels of the last pointwise convolution). Channels written so are those of the net at any width; a row's
    scale with it.

    Raises:
        ValueError: the text is neither; near names are offered.
    """
    if text in MACROS:
        return MACROS[text].at(width)
    parts = re.split("[.,]", text)
    stem = re.fullmatch(r"s(\d+)", parts[0])
    last = re.fullmatch(r"p(\d+)", parts[-1])
    stages = [re.fullmatch(r"(\d+)x(\d+)(?:c(\d+))?(r?)", part) for part in parts[bool(stem) : len(parts) - bool(last)]]
    if not stages or None in stages:
        near = difflib.get_close_matches(text.lower(), MACROS, n=1)
        raise ValueError(
            f"macro-architecture is {text!r}; it must be a name ({', '.join(MACROS)}), or blocks x stride of each stage, "
            "with its channels and r for residual sums where wanted, e.g. 2x2,2x2,2x2 or s2,2x2,4x2c64r,p128"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    fields = (stage.groups() for stage in stages)
    return Macro(
        tuple(Stage(int(b), int(s), None if c is None else int(c), bool(r)) for b, s, c, r in fields),
        stem_stride=int(stem[1]) if stem else 1,
        last_channels=int(last[1]) if last else None,
    )
