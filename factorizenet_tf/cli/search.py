"""The command that searches."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..console import Progress, print_json, require_extra
from . import options
from .train import source_to_start_from

__all__ = ["numbers", "search"]

OF_NETS = ("width", "macro", "macros", "blocks", "stage_channels")  # options of the package's own nets
LIMITS = ("max_macs", "max_size_bytes", "max_ram_bytes", "max_latency_ms")
PIXELS = ("pixel_range", "pixel_mean", "pixel_deviation")
TABLE_IMAGES = 256  # of those that the layers are fitted on, for the factorization table


def _limit(help):
    return typer.Option(help=f"{help} With --model a share of its own, too: 50%.", metavar="AMOUNT|SHARE")


def search(
    context: typer.Context,
    dataset: options.DatasetOption,
    out: Annotated[Path, typer.Option(help="The search's folder; the same command continues it.")],
    max_macs: Annotated[str | None, _limit("MACs of one image at most, e.g. 12.5M.")] = None,
    max_size_bytes: Annotated[str | None, _limit("Bytes of the int8 .tflite at most, e.g. 100k.")] = None,
    max_ram_bytes: Annotated[
        str | None, _limit("Bytes of the arena of TensorFlow Lite Micro's reference kernels at most (extra micro).")
    ] = None,
    max_latency_ms: Annotated[
        str | None,
        _limit(
            "Milliseconds of one int8 inference at most, one thread, here; with --model as `export --regroup fastest` makes "
            "the file."
        ),
    ] = None,
    min_accuracy: options.MinAccuracy = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Start nets from this float net, a name or a run's folder; sets width and macro-architecture.",
            autocompletion=options.net_names,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Factorize this net instead of building nets: your tf_keras or Keras 3 model, a -float name, a run.",
            autocompletion=options.net_names,
        ),
    ] = None,
    groups: Annotated[
        str,
        typer.Option(
            help="With --model, layers that share a level: resolution, each (no two), or a file of name patterns, one a line."
        ),
    ] = "resolution",
    middle: Annotated[
        str, typer.Option(help="With --model: multiples of the channels before, for those between the two parts.")
    ] = "1,2,3",
    images: Annotated[int, typer.Option(help="With --model: training images to fit the layers on.")] = 512,
    stem: Annotated[
        bool, typer.Option("--stem", help="With --model: factorize convolutions that read the image, too.")
    ] = False,
    pixel_range: options.PixelRange = None,
    pixel_mean: options.PixelMean = None,
    pixel_deviation: options.PixelDeviation = None,
    zoo_: options.ZooOption = None,
    width: Annotated[str, typer.Option(help="Channels of the stem; several joined by commas to choose from.")] = "16",
    size: options.DataSize = None,
    channels: options.DataChannels = None,
    macro: options.MacroOption = None,
    macros: Annotated[
        str | None,
        typer.Option(help="Macro-architectures to choose from, their stages joined by dots: base,3x2.2x2.2x2."),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="Blocks of a stage to choose from: 1-4, or 1,2,4.", show_default="the macro's own"),
    ] = None,
    stage_channels: Annotated[
        str | None,
        typer.Option(help="Channels of a stage to choose from, as multiples: 0.5,1,2.", show_default="the macro's own"),
    ] = None,
    epochs: options.Epochs = None,
    qat_epochs: options.QatEpochs = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak of the float epochs.", show_default="the recipe's")
    ] = None,
    max_trials: Annotated[int | None, typer.Option(help="Nets to train at most.", show_default="as needed")] = None,
    patience: Annotated[int, typer.Option(help="Rounds without a better net before the end.")] = 3,
    inherit: Annotated[
        bool, typer.Option("--inherit", help="Start each net from the weights of the one that it is derived from.")
    ] = False,
    prune: Annotated[bool, typer.Option(help="Stop hopeless trainings early.")] = True,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    publish: Annotated[Path | None, typer.Option(help="Add the frontier and the best net to this zoo folder.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS|local", help="Train on a Ray cluster: its HOST:PORT, or one started here."),
    ] = None,
    resize: options.Resize = None,
    group_by: options.GroupBy = None,
    skip_broken: options.SkipBroken = False,
    data_dir: options.DataDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
):
    """Find the best net for a requirement, training few nets."""
    from ..recipe import check_has_qat
    from ..requirement import Requirement
    from ..spec import ModelSpec

    given = {name: context.params[name] for name in LIMITS if context.params[name] is not None}
    if model is None:
        reason = "without --model the package's own nets are searched"
        options.refuse_unused(context, reason, "groups", "middle", "images", "stem", *PIXELS)
        if start is None:
            options.refuse_unused(context, "without --from and --model no net is looked up", "zoo_")
        requirement = Requirement(**options.limits_of(given), min_accuracy=min_accuracy)
        source, spec = (None, None) if start is None else source_to_start_from(context, start, zoo_, OF_NETS)
        if start is not None and not isinstance(spec, ModelSpec):
            raise ValueError(
                f"--from {start} is none of the package's own nets; search what it may become with --model"
            )
        choices = _choices(context) if start is None else {"widths": (spec.width,)}
    else:
        of_own = (*OF_NETS, "channels", "inherit", "start")
        options.refuse_unused(context, "with --model its own layers are factorized", *of_own)
        Requirement(**options.limits_of(given, dict.fromkeys(given, 100)), min_accuracy=min_accuracy)
        choices = {"middles": numbers("middle", middle, "give numbers joined by commas: 1,2,3", float)}
        choices["groups"] = _patterns(groups)
        if images < 1:
            raise ValueError(f"images is {images}; it must be at least 1")
    recipe = options.recipe_from(context, dataset, is_tuning=model is not None)
    check_has_qat(recipe)
    for option, value in (("--max-ram-bytes", max_ram_bytes), ("--publish", publish)):
        if value is not None:
            require_extra("tflite_micro", extra="micro", what=f"{option}: measuring RAM")
    cluster = contextlib.nullcontext()
    if ray is not None:
        from ..tuner.ray_executor import RayExecutor

        cluster = RayExecutor(ray)
    with cluster as executor:
        if model is None:
            shape = None if start is None else options.image_shape(size, channels, spec.input_shape)
            data = options.load_data(context, dataset, shape, source)
            if start is None:
                spec = options.spec_from("0", choices["widths"][0], data.image_shape, 10, macro)
            nets = dataclasses.replace(spec, level=0, input_shape=data.image_shape, num_classes=data.num_classes)
        else:
            data, nets, costs = _model_space(context, choices, given)
            recipe = options.fitting(recipe, data)
            requirement, choices = Requirement(**options.limits_of(given, costs), min_accuracy=min_accuracy), {}
        from ..tuner import search as searching
        from ..tuner.oracle import FactorizationOracle

        oracle = FactorizationOracle(nets, requirement, **choices, seed=seed, max_trials=max_trials, patience=patience)
        initial = None if start is None else source
        how = {"recipe": recipe, "inherit": inherit, "initial": initial, "prune": prune, "executor": executor}
        found = searching.search(oracle, data, out=out, **how, verbose=not quiet)
    if publish is not None:
        searching.publish_found(found, publish, verbose=not quiet)
    if as_json:
        print_json({"best": found.best and found.best.name, "steps": found.steps, "nets": found.rows})
    else:
        print(found.summary)
        files = [name for name in ("results.csv", "summary.txt", "frontier.png") if (found.folder / name).exists()]
        print(f"{found.folder}: {', '.join(files)}")
    if found.best is None and not any(row["status"] == "trained" for row in found.rows):
        from ..tuner.budget import what_would_help

        raise RuntimeError(f"no net fits: {what_would_help(oracle.space, oracle.requirement, oracle.say)}")
    if not found.meets_requirement:
        raise RuntimeError("no net was found that meets the requirement; the best one is in the results")


def _choices(context) -> dict:
    """Read the choices among the package's own nets, and check them before data are loaded."""
    from ..tuner.space import Space

    given = context.params
    choices = {
        "widths": numbers("width", given["width"], "it must be a multiple of 8, or several joined by commas: 8,16"),
        "macros": tuple(given["macros"].split(",")) if given["macros"] else (),
        "blocks": numbers("blocks", given["blocks"], "give numbers joined by commas, or the first and the last: 1-4"),
        "channels": numbers(
            "stage-channels", given["stage_channels"], "give multiples joined by commas: 0.5,1,2", float
        ),
    }
    if given["macros"] and given["macro"]:
        raise ValueError("--macro and --macros are given; give one of them")
    shape = options.image_shape(given["size"], given["channels"])
    Space(options.spec_from("0", choices["widths"][0], shape, 10, given["macro"]), **choices)
    return choices


def _model_space(context, choices, limits):
    """Load a model, its data and its factorization table; give data, space, and the model's own costs."""
    import pandas

    from ..cost import count_macs
    from ..files import write_text
    from ..loading import resolve
    from ..models.factorize import factorization_table
    from ..models.quantize import without_softmax
    from ..runs import TABLE_FILE
    from ..tuner.costs import measure
    from ..tuner.model_space import ModelSpace
    from .factorize import shown_source

    given = context.params
    source = resolve(given["model"], zoo_dir=given["zoo_"], **options.own_model(context)).with_precision("float")
    model = without_softmax(source.float_model())
    data = options.load_data(context, given["dataset"], model.input_shape[1:], source)
    images, path = data.calibration(given["images"]), given["out"] / TABLE_FILE
    of_layers = {"middle": choices["middles"], "stem": given["stem"]}
    if path.exists():
        try:
            table = pandas.read_csv(path)
            table[["layer", "groups", "macs", "logits_error_int8"]]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to have it measured again") from None
    else:
        ModelSpace(model, images, stem=given["stem"], **choices)  # what is wrong is said before the table is measured
        with Progress(not given["quiet"]) as progress:
            progress.bar("factorizing each layer alone", len(model.layers) - 1)
            table = factorization_table(model, images[:TABLE_IMAGES], **of_layers, advance=progress.step)
        if not given["out"].exists() or not any(given["out"].iterdir()):
            given["out"].mkdir(parents=True, exist_ok=True)
            write_text(path, table.to_csv(index=False))
    named = {"name": source.name.removesuffix("-float"), "reference": source.reference}
    space = ModelSpace(
        model, images, stem=given["stem"], **choices, **named, table=table, command=shown_source(context, source, data)
    )
    costs = {"max_macs": count_macs(model)}
    if any(str(limit).endswith("%") for name, limit in limits.items() if name != "max_macs"):
        own = measure(space.original, [name.removeprefix("max_") for name in limits if name != "max_macs"])
        costs |= {f"max_{cost}": value for cost, value in own.items()}
    return data, space, costs


def _patterns(groups: str) -> str | tuple[str, ...]:
    """Read how layers are grouped: a word, or a file of name patterns, one a line."""
    if groups in ("resolution", "each"):
        return groups
    try:
        return tuple(filter(None, map(str.strip, Path(groups).read_text().splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"groups is {groups!r}; give resolution, each, or a file of name patterns ({error})") from None


def numbers(name, text, remedy, kind=int):
    """Read numbers joined by commas, "1-4" standing for four of them; without text there are none."""
    try:
        parts = [part.split("-", 1) for part in text.split(",")] if text else []
        ranges = ([kind(first)] if not last else range(int(first), int(last[0]) + 1) for first, *last in parts)
        found = tuple(number for numbers in ranges for number in numbers)
        if text is None or found:
            return found
    except ValueError:
        pass
    raise ValueError(f"{name} is {text!r}; {remedy}")
