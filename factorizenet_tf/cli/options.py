"""The options that commands share, and what is made of them."""

import contextlib
import dataclasses
import math
import shlex
import warnings
from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Context, Option


def net_names(context: Context, incomplete: str) -> list[str]:
    """Complete the name of a published net for a shell, from --zoo if it was given before."""
    from .. import zoo

    with warnings.catch_warnings(), contextlib.suppress(OSError, ValueError):
        warnings.simplefilter("ignore")  # a line would be in the middle of what is typed
        where = context.params.get("zoo_") or context.params.get("zoo")
        return [name for name in zoo.names(zoo_dir=where) if name.startswith(incomplete)]
    return []


def net(help: str):
    """Describe a command's argument that takes a net, for Typer; a shell completes published names there."""
    return Argument(help=help, autocompletion=net_names)


Json = Annotated[bool, Option("--json", help="Print JSON instead of tables.")]
LevelOption = Annotated[str, Option("--level", help="A level, or one a stage joined by dots: 2, 1.2.4.")]
Width = Annotated[int, Option(help="Channels of the stem, a multiple of 8.")]
Size = Annotated[int, Option(help="Height and width of the images in pixels.")]
Channels = Annotated[int, Option(help="1 (grey) or 3 (RGB).")]
Classes = Annotated[int, Option(help="Number of classes.")]
MacroOption = Annotated[
    str | None,
    Option(
        "--macro",
        "--stages",
        help="Macro-architecture: a name, or blocks x stride of each stage, e.g. 2x2,2x2,2x2 or s2,2x2,4x2c64r,p128.",
        show_default="base; early from 64x64 pixels on",
    ),
]
DATASETS = "digits, tiny_imagenet, gtsrb, a TFDS name such as cifar10, or a folder of class folders."
DatasetOption = Annotated[str, Option("--dataset", help=DATASETS)]
DataDir = Annotated[Path | None, Option(help="Where TFDS keeps its data.", show_default="TFDS_DATA_DIR")]
Quiet = Annotated[bool, Option("--quiet", help="No progress on stderr.")]
DataSize = Annotated[int | None, Option("--size", help="Resize the images to this.", show_default="the data's own")]
DataChannels = Annotated[int | None, Option("--channels", help="1 or 3.", show_default="the data's own")]
PixelRange = Annotated[
    str | None,
    Option(help="Pixels that a Keras model of yours takes: 0..255 or -1..1.", show_default="0..1, or its Rescaling's"),
]
PixelMean = Annotated[str | None, Option(help="Subtracted from pixels in that range: a number, or one a channel.")]
PixelDeviation = Annotated[str | None, Option(help="The difference is divided by it: a number, or one a channel.")]
OpenSize = Annotated[int | None, Option("--size", help="Image size of a Keras model of yours that leaves it open.")]
Resize = Annotated[
    str | None,
    Option(
        "--resize",
        help="How to resize other aspect ratios: stretch, crop or pad.",
        show_default="stretch, or as the net's were",
    ),
]
GroupBy = Annotated[
    str | None, Option(help="A regular expression on file names: images with the same match stay in one split.")
]
SkipBroken = Annotated[bool, Option("--skip-broken", help="Leave out images of a folder that cannot be read.")]
ZooOption = Annotated[str | None, Option("--zoo", help="A zoo's folder or address.", show_default="the package's own")]
KeepNames = Annotated[bool, Option("--keep-names", help="Keep inner tensors' names, for tools that show them.")]
Name = Annotated[str, net("A name of `factorizenet list`.")]
Epochs = Annotated[int | None, Option(help="Float epochs.", show_default="the recipe's")]
QatEpochs = Annotated[int | None, Option(help="QAT epochs.", show_default="the recipe's")]


def _parse_amount(text):
    from ..requirement import amount

    try:
        return amount(text)
    except ValueError as error:  # Typer would drop its message
        raise BadParameter(str(error)) from None


def _amount_option(help):
    return Option(help=help, parser=_parse_amount, metavar="AMOUNT")


MaxMacs = Annotated[int | None, _amount_option("MACs of one image at most, e.g. 12.5M.")]
MaxSizeBytes = Annotated[int | None, _amount_option("Bytes of the file (int8: the .tflite) at most, e.g. 100k.")]
RAM = "Bytes of RAM at most: the arena of TensorFlow Lite Micro's reference kernels (int8); others need more."
MaxRamBytes = Annotated[int | None, _amount_option(RAM)]
MaxLatencyMs = Annotated[
    float | None, Option(help="Milliseconds of one int8 inference at most, one thread, here; in `list`, the card's.")
]
MinAccuracy = Annotated[float | None, Option(help="Floor of int8 validation accuracy, 0..1; the fewest MACs win.")]


def limits_from(context: Context) -> dict[str, float]:
    """Read the limits and the floor that the user gave, e.g. {"max_macs": 12_500_000}."""
    from ..requirement import Requirement

    return _given(context, Requirement)


def limits_of(given: dict[str, str], own: dict[str, float] | None = None) -> dict[str, float]:
    """Read limits, by the fields of a `Requirement`: amounts or, if a net's `own` costs are given, shares of them, "50%".

    Raises:
        ValueError: a limit is neither; the message names it.
    """
    from ..requirement import amount

    found = {}
    for name, text in given.items():
        option = f"--{name.replace('_', '-')}"
        try:
            if text.endswith("%"):
                if own is None:
                    raise ValueError("a share refers to --model's own cost; give an amount")
                if not 0 < float(text[:-1]) <= 100:
                    raise ValueError("a share must be above 0 % and at most 100 %")
                found[name] = float(text[:-1]) / 100 * own[name]
                found[name] = found[name] if name == "max_latency_ms" else int(found[name])
            else:
                found[name] = _milliseconds(text) if name == "max_latency_ms" else amount(text)
        except ValueError as error:
            raise ValueError(f"{option} is {text!r}; {str(error).removeprefix(f'{text!r} is no amount; ')}") from None
    return found


def _milliseconds(text) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError("give milliseconds above 0: 2.5")
    return number


def recipe_from(context: Context, dataset: str, *, is_tuning: bool = False, **changes):
    """Make the `Recipe` for a data set, or for tuning on it, with the fields that the user gave, and `changes` for others."""
    from ..recipe import Recipe, recipe_for, tuning_recipe_for

    make = tuning_recipe_for if is_tuning else recipe_for
    return make(dataset, begun=context.params.get("out"), **changes | _given(context, Recipe))


def own_model(context: Context) -> dict:
    """Make `loading.resolve`'s `pixels` and `size` from their options, None if the user gave none."""
    from ..pixels import Pixels

    given = [context.params[name] for name in ("pixel_range", "pixel_mean", "pixel_deviation")]
    mean, deviation = (tuple(map(_number, (text or "").split(","))) if text else () for text in given[1:])
    pixels = None if given == [None] * 3 else Pixels(given[0], mean, deviation)
    return {"pixels": pixels, "size": context.params["size"]}


def _number(text) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number; give one, or one a channel joined by commas: 0.5,0.5,0.5") from None


def _given(context, dataclass):
    values = {field.name: context.params.get(field.name) for field in dataclasses.fields(dataclass)}
    return {name: value for name, value in values.items() if value is not None}


def given_options(context: Context, *names: str) -> list[str]:
    """List those of the parameters that the user gave, as options: "--qat-epochs"."""
    return [
        next(option for option in parameter.opts if option.startswith("--"))
        for parameter in context.command.params
        if parameter.name in names
        and context.get_parameter_source(parameter.name).name in ("COMMANDLINE", "ENVIRONMENT")
    ]


def shown_options(context: Context, values: dict, left_out: tuple[str, ...], always: tuple[str, ...]) -> str:
    """Write the options that the user gave, for the command on a card.

    Args:
        context: Typer's.
        values: of all parameters, by name.
        left_out: parameters that do not belong on a card: folders of this machine, and how progress is shown.
        always: parameters that are written whenever they have a value, given or not.
    """
    parts = []
    for parameter in context.command.params:
        name, value = parameter.name, values[parameter.name]
        if name in left_out or value is None or not (name in always or given_options(context, name)):
            continue
        if isinstance(value, bool):
            parts.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            parts.append(f"{parameter.opts[0]} {shlex.quote(str(value))}")
    return " ".join(parts)


def refuse_unused(context: Context, reason: str, *names: str) -> None:
    """Raise ValueError if the user gave a parameter that has no effect; `reason`: "--method ptq trains nothing"."""
    if given := given_options(context, *names):
        raise ValueError(f"{reason}, so {' and '.join(given)} would have no effect; leave it out")


def spec_from(level, width, input_shape, classes, macro):
    """Make the `ModelSpec` of the options. Raises ValueError as it does."""
    from ..spec import ModelSpec, level_from_text

    return ModelSpec(level_from_text(level), width=width, input_shape=input_shape, num_classes=classes, macro=macro)


def check_data_dir(data_dir, *datasets: str) -> None:
    """Raise ValueError where --data-dir is given and none of the data sets is one of TFDS."""
    from ..data import NAMED, is_folder

    if (
        data_dir is not None
        and datasets
        and all(dataset in ("digits", *NAMED) or is_folder(dataset) for dataset in datasets)
    ):
        found = ", ".join(dict.fromkeys(datasets))
        raise ValueError(f"--data-dir is where TFDS keeps its data, and {found} is none of its sets; leave it out")


def load_data(context, dataset, shape=None, source=None):
    """Load the `Dataset` of the options, at `shape` if it is given; options of reading default to those of `source`.

    Raises:
        ValueError, FileNotFoundError: as `load_dataset`, or a --data-dir that would have no effect.
    """
    from ..data import load_dataset

    given, names = context.params, ("resize", "group_by", "skip_broken")
    size, channels, data_dir = map(given.get, ("size", "channels", "data_dir"))
    check_data_dir(data_dir, dataset)
    if shape is None or None in shape:
        shape = None if size is None and channels is None else image_shape(size, channels)
    reading = {name: given[name] for name in names if given.get(name) not in (None, False)}
    reading |= {"input_shape": shape and tuple(shape), "data_dir": data_dir}
    if source is None:
        return load_dataset(dataset, **reading)
    return source.load_data(given.get("dataset"), **reading)


def fitting(recipe, data):
    """Lower a recipe's batch size to the number of training images, for a command without --batch-size."""
    return dataclasses.replace(recipe, batch_size=min(recipe.batch_size, len(data.train)))


def image_shape(size, channels, default=(32, 32, 3)):
    """Make (height, width, channels) of the options, with `default` for what is not given; a size of 0 is refused later."""
    height, width = default[:2] if size is None else (size, size)
    return height, width, default[2] if channels is None else channels
