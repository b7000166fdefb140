"""The command that factorizes a trained net."""

import shlex
import warnings
from pathlib import Path
from typing import Annotated

from typer import Context, Option

from ..console import Progress, print_accuracies, print_json, show_rows
from ..files import atomic_write, check_new, write_text
from ..runs import START_FILE
from . import options

__all__ = ["factorize", "shown_source"]

RECIPE = ("epochs", "qat_epochs", "learning_rate", "seed")  # fields of it that are options
OF_DATA = ("dataset", "unlabelled", "images", "size", "resize", "group_by", "skip_broken")
TIMER = 1.02  # times that differ by less are equal
SHOWN = (*RECIPE, *OF_DATA, "stem", "pixel_range", "pixel_mean", "pixel_deviation", "zoo_")  # on a card


def factorize(
    context: Context,
    model: Annotated[str, options.net("Your .keras, .h5 or SavedModel; a -float name or a run's folder.")],
    out: Annotated[Path | None, Option(help="The factorized net, a new .keras file.", show_default="none")] = None,
    level: Annotated[
        str | None,
        Option(help="2**level groups: of all layers, 3, or by layer, conv2=1,conv3=4.", show_default="by --max-..."),
    ] = None,
    middle: Annotated[
        str | None,
        Option(help="Channels between the two parts, as a multiple of those before; as --level.", show_default="1"),
    ] = None,
    max_macs: Annotated[
        str | None,
        Option(
            help="Choose levels and middles for this budget: a share, 50%, or an amount, 6M.", metavar="SHARE|AMOUNT"
        ),
    ] = None,
    max_latency_ms: Annotated[
        str | None,
        Option(
            help="Choose them for this time, too, of one int8 inference as `export --regroup fastest` makes the file, one "
            "thread, here: a share, 100%, or milliseconds.",
            metavar="SHARE|MS",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        Option(help="Tune it, with the original as teacher, in this run's folder; the same command continues."),
    ] = None,
    epochs: Annotated[int | None, Option(help="Float epochs of --run.", show_default="5")] = None,
    qat_epochs: Annotated[int | None, Option(help="QAT epochs of --run.", show_default="1")] = None,
    learning_rate: Annotated[float | None, Option(help="Peak of --run's float epochs.", show_default="0.02")] = None,
    table: Annotated[
        Path | None, Option(help="Write each layer's error at each level, without training, as .csv.")
    ] = None,
    figure: Annotated[Path | None, Option(help="Draw that table into this .png or .svg (extra report).")] = None,
    dataset: Annotated[
        str | None,
        Option(
            "--dataset",
            help="Data whose training images the layers are fitted on.",
            show_default="what it was trained on",
        ),
    ] = None,
    unlabelled: Annotated[
        Path | None, Option(help="Instead of --dataset: a folder of images, labelled by what the net predicts.")
    ] = None,
    images: Annotated[int, Option(help="Training images to fit on; 0: approximate the kernels alone.")] = 512,
    seed: Annotated[int | None, Option(help="Of everything random in --run.", show_default="0")] = None,
    stem: Annotated[bool, Option("--stem", help="Factorize convolutions that read the image, too.")] = False,
    pixel_range: options.PixelRange = None,
    pixel_mean: options.PixelMean = None,
    pixel_deviation: options.PixelDeviation = None,
    size: options.OpenSize = None,
    resize: options.Resize = None,
    group_by: options.GroupBy = None,
    skip_broken: options.SkipBroken = False,
    zoo_: options.ZooOption = None,
    data_dir: options.DataDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
):
    """Factorize a trained net: grouped and pointwise convolutions."""
    given = {"max_macs": max_macs, "max_latency_ms": max_latency_ms}
    given = {name: text for name, text in given.items() if text is not None}
    is_table_alone = level is None and not given and (table or figure) is not None
    if not is_table_alone and (level is None) == (not given):
        limits = "--max-macs or --max-latency-ms (or both)"
        raise ValueError(f"give --level, or {limits} to have levels chosen, or --table or --figure alone")
    if level is None:
        options.refuse_unused(context, "without --level middles are chosen, too", "middle")
    if is_table_alone:
        options.refuse_unused(context, "the table alone factorizes nothing", "out", "run")
    if run is None:
        options.refuse_unused(context, "without --run nothing is trained", *RECIPE)
    elif not images:
        raise ValueError("--images is 0 and --run is given; leave one of them out")
    is_begun = run is not None and (run / START_FILE).exists()
    by_table = bool(given) or (table or figure) is not None
    if images < 0 or (by_table and not images):
        raise ValueError(f"images is {images}; it must be at least {int(by_table)}")
    if not images:
        options.refuse_unused(context, "--images 0 reads none", "dataset", "unlabelled", "data_dir")
    options.limits_of(given, dict.fromkeys(given, 1e9))
    levels = None if level is None else _by_layer("level", level, int)
    middles = 1 if middle is None else _by_layer("middle", middle, float)
    for path, *endings in ((out, ".keras"), (table, ".csv"), (figure, ".png", ".svg")):
        if path is not None and path.suffix not in endings:
            raise ValueError(f"{path} must end in {' or '.join(endings)}; give {path.with_suffix(endings[0])}")
        if path is not None and not is_begun:
            check_new(path)
    if figure is not None:
        from ..plots import factorization_map, save
    from ..cost import count_macs, count_params
    from ..loading import check_served_name, resolve
    from ..models.evaluate import accuracy
    from ..models.factorize import factorization_table, levels_of_layers, with_latencies
    from ..models.factorize import factorize as factorize_model
    from ..models.quantize import with_softmax, without_softmax
    from ..training.factorized import begin, check_free, check_tunable, labelled_by, load_begun, shown_command

    if run is not None and not is_begun:
        check_free(run)
        check_served_name(run.resolve().name)  # of which the net's name is made
    source = resolve(model, zoo_dir=zoo_, **options.own_model(context)).with_precision("float")
    own = without_softmax(whole := source.float_model())
    if run is not None and not is_begun:
        check_tunable(own, run.resolve().name, qat_epochs != 0)
    offered = levels_of_layers(own, stem=stem)
    data, calibration = None, None
    if images:
        if dataset is None and unlabelled is None:
            source.check_data_known()
        if unlabelled is not None:
            options.refuse_unused(context, "--unlabelled is what is read", "dataset", "group_by", "skip_broken")
            data = labelled_by(own, unlabelled, class_names=source.labels, resize=resize or source.resize)
        else:
            data = options.load_data(context, dataset or source.dataset_name, own.input_shape[1:], source)
        calibration = data.calibration(images)
    command = None
    if run is not None:
        command = _command(context, source, data, run, "level", "middle", *given)
    found, result = None, load_begun(run, command) if is_begun else None
    files = [path for path in (table, figure) if path is not None and not path.exists()]  # a begun run may have some
    with Progress(not quiet) as progress:
        if files or (given and not is_begun):
            progress.bar("factorizing each layer alone", len(own.layers) - 1)
            found = factorization_table(own, calibration, stem=stem, advance=progress.step)
            if max_latency_ms is not None:
                progress.bar("timing what each layer may become", len(offered))
                found = with_latencies(own, found, advance=progress.step)

        def factorized(levels, middles):
            progress.bar("factorizing", len(own.layers) - 1)
            choices = {"middle": middles, "calibration": calibration, "stem": stem}
            return factorize_model(own, levels, **choices, advance=progress.step)

        times = []
        if given and not is_begun:
            levels, middles, result, times = _chosen(own, found, given, calibration, factorized, progress)
        elif levels is not None and not is_begun:
            result = factorized(levels, middles)
        if table in files:
            write_text(table, found.to_csv(index=False))
        if figure in files:
            save(factorization_map(found), figure)
        if out is not None and not out.exists():
            with atomic_write(out) as aside:
                (result if own is whole else with_softmax(result)).save(aside, save_format="keras")
        nets = {"original": own} | ({} if result is None else {"factorized": result})
        summary = []
        for name, net in nets.items():
            progress.say(f"measuring the {name} net")
            row = {"net": name, "macs": count_macs(net), "params": count_params(net)}
            row |= {} if data is None else {"validation_accuracy": round(accuracy(net, data.validation), 4)}
            summary.append(row)
        for row, ms in zip(summary, times):
            row["ms"] = round(ms, 4)
    if result is None:
        columns = ["layer", "level", "middle", "groups", "macs", "energy_lost", "output_error", "logits_error_int8"]
        rows = found[columns].to_dict("records")
    else:
        rows = _rows(own, result, offered)
    tuned = None
    if run is not None:
        from ..models.architecture import architecture_of
        from ..models.keras3 import quantizable
        from ..training.train import train

        unflipped = {"flip": False} if unlabelled else {}
        recipe = options.fitting(options.recipe_from(context, data.name, is_tuning=True, **unflipped), data)
        result = quantizable(result)
        spec = architecture_of(result, run.resolve().name)
        if not is_begun:
            shown = None
            if max_latency_ms is not None:  # latencies are this machine's: a card has what they led to
                numbers = {"level": levels, "middle": middles}
                own = [f"--{name} {_as_text(values)}" for name, values in numbers.items() if values]
                shown = _command(context, source, data, run, also=" ".join(own))
            begin(run, result, spec, command, shown)
        how = {"recipe": recipe, "initial": result, "teacher": source, "verbose": not quiet}
        how["command"] = shown_command(run)
        tuned = train(spec, data, out=run, **how)
    if as_json:
        print_json({"nets": summary, "layers": rows} | ({} if tuned is None else {"run": tuned.metrics}))
        return
    show_rows(rows, title="Layers")
    show_rows(summary, title="" if data is None else f"{data.title}, {len(data.validation):,} validation images")
    if tuned is not None:
        print_accuracies(tuned.metrics, data.class_names)
        print(f"{tuned.metrics['macs']:,} MACs, {tuned.metrics['size_bytes']:,} bytes; in {run}")
    if out is not None:
        print(f"{out}; make it int8 with `factorizenet quantize {out} --dataset ... --out ...`")


def shown_source(context, source, data, *own: str) -> tuple[str, str]:
    """Write the beginning of the command that tunes a factorized net, for a card, without folders of this machine.

    Args:
        context: Typer's, of a command that has this one's options.
        source, data: the original net, and the data to tune on.
        own: further parameters to write if the user gave them.

    Returns:
        The beginning, to which --run belongs, and a comment.
    """
    from ..zoo.publishing import shown_sources
    from ..zoo.store import other_zoo

    name, initial, zoo, comment = shown_sources(data.name, source.reference, other_zoo(source.zoo))
    values = context.params | {"dataset": name, "zoo_": zoo}
    if values.get("unlabelled"):
        where = f"path/to/{values['unlabelled'].resolve().name}"
        values |= {"dataset": None, "unlabelled": where}
        comment = comment.replace("images, labels: your arrays", f"{where}: the folder of its images")
    left_out = tuple(parameter for parameter in context.params if parameter not in (*SHOWN, *own))
    given = options.shown_options(context, values, left_out, ("dataset", "zoo_"))
    return f"factorizenet factorize {shlex.quote(str(initial))} {given}", comment


def _command(context, source, data, run, *own: str, also: str = "") -> str:
    """Write the command that tunes in a run's folder, with the user's values of `own`, or `also`."""
    start, comment = shown_source(context, source, data, *own)
    return f"{start} {also}{' ' * bool(also)}--run runs/{run.resolve().name}{comment}"


def _as_text(numbers) -> str:
    return ",".join(f"{layer}={number:g}" for layer, number in numbers.items())


def _chosen(own, table, given, calibration, factorized, progress) -> tuple:
    """Choose levels for the limits, and tighter ones while the net takes longer than its layers alone let expect.

    Returns:
        levels, middles, the net, and with a limit of time the milliseconds of the original and of the net.

    Raises:
        ValueError: the net keeps to the limits as it is, or nothing keeps to them.
    """
    from ..cost import count_macs
    from ..models.choose import choose_levels

    costs, text = {"max_macs": count_macs(own)}, given.get("max_latency_ms")
    if text is not None:
        progress.say("timing the original")
        original = _exported(own, calibration)
        (costs["max_latency_ms"],) = _milliseconds([original])
    limits = costs | options.limits_of(given, costs)
    if all(limits[name] >= cost for name, cost in costs.items()):
        shown = " and ".join(f"--{name.replace('_', '-')} {limit}" for name, limit in given.items())
        raise ValueError(f"the net keeps to {shown} as it is, so nothing would be factorized; give less")
    levels, middles = choose_levels(own, table, limits["max_macs"])  # raises if MACs alone are out of reach
    if text is None:
        return levels, middles, factorized(levels, middles), []
    limit, whole = limits["max_latency_ms"], costs["max_latency_ms"]
    rest = whole - table.ms[table.level == 0].sum()  # what the other layers take
    tries = []
    for share in (1, 0.97, 0.94):
        try:
            levels, middles = choose_levels(own, table, limits["max_macs"], max_ms=share * limit - rest)
        except ValueError:
            break
        net = factorized(levels, middles)
        progress.say("timing both")
        times = _milliseconds([original, _exported(net, calibration)])
        allowed = limit / whole * times[0] if text.endswith("%") else limit
        tries.append((times[1] / allowed, allowed, (levels, middles, net, times)))
        if times[1] <= TIMER * allowed:
            break
    if not tries:
        least = rest + table.groupby("layer").ms.min().sum()
        raise ValueError(
            f"--max-latency-ms is {text!r}; within {limits['max_macs']:,} MACs no levels were found that take {limit:.4g} ms. The net "
            f"takes {whole:.4g} ms as it is, with the fastest choice in each layer about {least:.4g}: give more ms or MACs"
        )
    ratio, allowed, chosen = min(tries, key=lambda one: one[0])
    if ratio > TIMER:
        warnings.warn(
            f"the factorized net takes {chosen[3][1]:.4f} ms, more than the {allowed:.4f} of --max-latency-ms {text}: its layers alone "
            "took less; give a smaller limit",
            stacklevel=1,
        )
    return chosen


def _exported(net, calibration) -> bytes:
    """Make a net's int8 .tflite as `export --regroup fastest` does."""
    from ..models.convert import to_tflite
    from ..tflite.regroup import regroup_fastest

    return regroup_fastest(to_tflite(net, calibration=calibration)).content


def _milliseconds(files) -> list[float]:
    """Time .tflite files in turns, on one thread."""
    import numpy as np

    from ..tflite.latency import inference, time_in_turns

    return np.median(time_in_turns([inference(file) for file in files]), axis=0).tolist()


def _by_layer(name, text, kind):
    """Read one number for all layers, or conv2=1,conv3=4."""
    try:
        if "=" not in text:
            return kind(text)
        return {layer: kind(number) for layer, number in (part.rsplit("=", 1) for part in text.split(","))}
    except ValueError:
        raise ValueError(f"{name} is {text!r}; give one number, or layer=number joined by commas") from None


def _rows(own, result, names) -> list[dict]:
    """Give what became of each layer that can be factorized."""
    from ..cost import cost_rows

    before, after = ({row.layer: row for row in cost_rows(net)} for net in (own, result))
    rows = []
    for name in names:
        parts = [after[part] for part in (name, f"{name}_spatial", f"{name}_pointwise") if part in after]
        macs, groups = sum(part.macs for part in parts), max(part.groups for part in parts)
        row = {"layer": name, "groups": groups, "parts": ", ".join(part.kind for part in parts)}
        rows.append(row | {"macs": macs, "share": f"{100 * macs / before[name].macs:.0f} %"})
    return rows
