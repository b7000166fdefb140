"""The options that commands share, and what is made of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
LevelOption = Annotated[str, typer.Option("--level", help="A level, or one a stage joined by dots: 2, 1.2.4.")]
Width = Annotated[int, typer.Option(help="Channels of the stem, a multiple of 8.")]
Size = Annotated[int, typer.Option(help="Height and width of the images in pixels.")]
Channels = Annotated[int, typer.Option(help="1 (grey) or 3 (RGB).")]
Classes = Annotated[int, typer.Option(help="Number of classes.")]
MacroOption = Annotated[
    str | None,
    typer.Option(
        "--macro",
        "--stages",
        help="Macro-architecture: a name, or blocks x stride of each stage, e.g. 2x2,2x2,2x2 or s2,2x2,4x2c64r,p128.",
        show_default="base; early from 64x64 pixels on",
    ),
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
    """Import TensorFlow first by the one module that does so quietly."""
    from .. import _keras  # noqa: F401


def find_net(net: str, zoo_dir: str | None):
    """Find the net that a command is given, TensorFlow imported quietly first where it takes that to read the file.

    Args:
        net: what `loading.resolve` takes, as text.
        zoo_dir: of --zoo.

    Returns:
        The `Source`.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: as `loading.resolve`.
    """
    from ..loading import resolve

    path = Path(net)
    if (path.is_file() and path.suffix.lower() != ".tflite") or (path / "saved_model.pb").is_file():
        import_tensorflow()
    return resolve(net, zoo_dir=zoo_dir)


def given_options(context: typer.Context, *names: str) -> list[str]:
    """List the options, "--qat-epochs" and the like, that the user gave among those of some parameters' names."""
    return [
        next(option for option in parameter.opts if option.startswith("--"))
        for parameter in context.command.params
        if parameter.name in names
        and context.get_parameter_source(parameter.name).name in ("COMMANDLINE", "ENVIRONMENT")
    ]


def refuse_unused(context: typer.Context, reason: str, *names: str) -> None:
    """Refuse options that would have no effect here, where the user gave one.

    Args:
        context: Typer's, of the command.
        reason: what makes them so, e.g. "--method ptq trains nothing".
        names: the parameters' names in the command's function, e.g. "qat_epochs".

    Raises:
        ValueError: one was given; the message names it.
    """
    given = given_options(context, *names)
    if given:
        raise ValueError(f"{reason}, so {' and '.join(given)} would have no effect; leave it out")


def spec_from(level, width, size, channels, classes, macro, input_shape=None):
    """Make the `ModelSpec` of the options; `input_shape` stands for size and channels. Raises ValueError as it does."""
    from ..spec import ModelSpec, level_from_text

    return ModelSpec(
        level_from_text(level),
        width=width,
        input_shape=input_shape or (size, size, channels),
        num_classes=classes,
        macro=macro,
    )


def load_data(dataset, size, channels, data_dir, shape=None):
    """Load the `Dataset` of the options, at `shape` where that is known.

    Raises:
        ValueError, FileNotFoundError: as `load_dataset`, or a --data-dir that would have no effect.
    """
    from ..data import load_dataset

    is_tfds = dataset != "digits" and os.sep not in dataset and not Path(dataset).is_dir()
    if data_dir is not None and not is_tfds:
        raise ValueError(f"--data-dir is where TFDS keeps its data, and {dataset} is none of its sets; leave it out")
    if is_tfds:
        import_tensorflow()
    if shape is None or None in shape:
        shape = None
        if size is not None or channels is not None:
            shape = (given_or(size, 32), given_or(size, 32), given_or(channels, 3))
    return load_dataset(dataset, input_shape=shape and tuple(shape), data_dir=data_dir)


def given_or(value, default):
    """Give the value where it was given, 0 included."""
    return default if value is None else value
