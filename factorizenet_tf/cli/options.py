"""What the commands share: their options, and what becomes of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Channels",
    "Classes",
    "DataChannels",
    "DataDir",
    "DataSize",
    "DatasetOption",
    "Json",
    "LevelOption",
    "Name",
    "Quiet",
    "Size",
    "Stages",
    "Width",
    "ZooOption",
    "amount_option",
    "given_or",
    "import_tensorflow",
    "load_data",
    "spec_from",
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
LevelOption = Annotated[str, typer.Option("--level", help="A level, or one a stage joined by dots: 2, 1.2.4.")]
Width = Annotated[int, typer.Option(help="Channels of the stem, a multiple of 8.")]
Size = Annotated[int, typer.Option(help="Height and width of the images in pixels.")]
Channels = Annotated[int, typer.Option(help="1 (grey) or 3 (RGB).")]
Classes = Annotated[int, typer.Option(help="Number of classes.")]
Stages = Annotated[
    str | None,
    typer.Option(help="blocks x stride of each stage, e.g. 2x2,2x2,2x2.", show_default="the package's own"),
]
DatasetOption = Annotated[
    str, typer.Option("--dataset", help="digits, a TFDS name such as cifar10, or a folder of class folders.")
]
DataDir = Annotated[Path | None, typer.Option(help="Where TFDS keeps its data.", show_default="TFDS_DATA_DIR")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
DataSize = Annotated[
    int | None, typer.Option("--size", help="Resize the images to this.", show_default="the data's own")
]
DataChannels = Annotated[int | None, typer.Option("--channels", help="1 or 3.", show_default="the data's own")]
ZooOption = Annotated[
    str | None, typer.Option("--zoo", help="A zoo folder or its http(s) address.", show_default="the package's own")
]
Name = Annotated[str, typer.Argument(help="A name of `factorizenet list`.")]


def amount_option(help: str):
    """Declare an option that takes an amount as `requirement.amount` reads it: 12500000, 12.5e6, 12.5M, 100k."""
    return typer.Option(help=help, parser=_parse_amount, metavar="AMOUNT")


def _parse_amount(text):
    from ..requirement import amount

    try:
        return amount(text)
    except ValueError as error:  # Typer would drop its message
        raise typer.BadParameter(str(error)) from None


def import_tensorflow():
    """Import it with what its C++ side says at start-up, before it reads any log level, kept off stderr."""
    if "tensorflow" in sys.modules or os.environ.get("FACTORIZENET_TRACEBACK"):
        return
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        from .. import _keras  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def spec_from(level, width, size, channels, classes, stages, input_shape=None):
    """The `ModelSpec` of the options; `input_shape` stands for size and channels. Raises ValueError as it does."""
    from ..spec import DEFAULT_STAGES, ModelSpec

    try:
        numbers = tuple(int(part) for part in level.split("."))
    except ValueError:
        raise ValueError(
            f"level is {level!r}; it must be a number, or one a stage joined by dots, e.g. 1.2.4"
        ) from None
    return ModelSpec(
        numbers[0] if len(numbers) == 1 else numbers,
        width=width,
        input_shape=input_shape or (size, size, channels),
        num_classes=classes,
        stages=DEFAULT_STAGES if stages is None else _parse_stages(stages),
    )


def _parse_stages(text):
    try:
        return tuple(tuple(int(n) for n in part.split("x")) for part in text.split(","))
    except ValueError:
        raise ValueError(f"stages is {text!r}; it must be blocks x stride of each, e.g. 2x2,2x2,2x2") from None


def load_data(dataset, size, channels, data_dir, shape=None):
    """The `Dataset` of the options, at `shape` where that is known."""
    from ..data import load_dataset

    if dataset != "digits" and not Path(dataset).is_dir():
        import_tensorflow()  # for TFDS
    if shape is not None and None not in shape:
        return load_dataset(dataset, input_shape=tuple(shape), data_dir=data_dir)
    if size is None and channels is None:
        return load_dataset(dataset, data_dir=data_dir)
    return load_dataset(
        dataset, input_shape=(given_or(size, 32), given_or(size, 32), given_or(channels, 3)), data_dir=data_dir
    )


def given_or(value, default):
    """The value where it was given, 0 included."""
    return default if value is None else value
