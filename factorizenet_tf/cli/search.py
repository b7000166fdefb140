"""The command that searches."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from ..console import print_json, require_extra
from . import options

__all__ = ["search"]


def search(
    context: typer.Context,
    dataset: options.DatasetOption,
    out: Annotated[Path, typer.Option(help="The search's folder; the same command continues it.")],
    max_macs: options.MaxMacs = None,
    max_size_bytes: options.MaxSizeBytes = None,
    max_ram_bytes: options.MaxRamBytes = None,
    max_latency_ms: options.MaxLatencyMs = None,
    min_accuracy: options.MinAccuracy = None,
    width: Annotated[str, typer.Option(help="Channels of the stem; several joined by commas to choose from.")] = "16",
    size: options.DataSize = None,
    channels: options.DataChannels = None,
    macro: options.MacroOption = None,
    macros: Annotated[
        str | None,
        typer.Option(help="Several to choose from, joined by commas, their stages by dots: base,3x2.2x2.2x2."),
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Of each stage, to choose from: 1-4, or 1,2,4.", show_default="the macro's own")
    ] = None,
    stage_channels: Annotated[
        str | None,
        typer.Option(help="Of each stage, to choose from, as multiples: 0.5,1,2.", show_default="the macro's own"),
    ] = None,
    epochs: options.Epochs = None,
    qat_epochs: options.QatEpochs = None,
    max_trials: Annotated[int | None, typer.Option(help="Nets to train at most.", show_default="as needed")] = None,
    patience: Annotated[int, typer.Option(help="Rounds without a better net before the end.")] = 3,
    inherit: Annotated[bool, typer.Option("--inherit", help="Start nets from the weights of the one before.")] = False,
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
    """Find the best net for a requirement, training few."""
    from ..requirement import Requirement
    from ..tuner.space import Space

    requirement = Requirement(**options.limits_from(context))
    recipe = options.recipe_from(context, dataset)
    widths = _numbers("width", width, "it must be a multiple of 8, or several joined by commas: 8,16")
    choices = {
        "macros": tuple(macros.split(",")) if macros else (),
        "blocks": _numbers("blocks", blocks, "give numbers joined by commas, or the first and the last: 1-4"),
        "channels": _numbers("stage-channels", stage_channels, "give multiples joined by commas: 0.5,1,2", float),
    }
    if macros and macro:
        raise ValueError("--macro and --macros are given; give one of them")
    for each in widths:  # what is wrong with the nets, and what is not installed, is said before anything is loaded
        Space(options.spec_from("0", each, size, channels, 10, macro), (each,), **choices)
    for option, value in (("--max-ram-bytes", max_ram_bytes), ("--publish", publish)):
        if value is not None:
            require_extra("tflite_micro", extra="micro", what=f"{option}: measuring RAM")
    with contextlib.ExitStack() as stack:
        executor = None
        if ray is not None:
            from ..tuner.ray_executor import RayExecutor

            executor = stack.enter_context(RayExecutor(ray))
        data = options.load_data(context, dataset, size, channels, data_dir)
        spec = options.spec_from("0", widths[0], None, None, data.num_classes, macro, input_shape=data.image_shape)
        from ..tuner import search as searching
        from ..tuner.oracle import FactorizationOracle

        oracle = FactorizationOracle(
            spec, requirement, widths=widths, **choices, seed=seed, max_trials=max_trials, patience=patience
        )
        found = searching.search(
            oracle,
            data,
            out=out,
            recipe=recipe,
            inherit=inherit,
            prune=prune,
            executor=executor,
            verbose=not quiet,
        )
    if publish is not None:
        searching.publish_found(found, publish, verbose=not quiet)
    if as_json:
        print_json({"best": found.best and found.best.name, "steps": found.steps, "nets": found.rows})
    else:
        print(found.summary)
        files = [name for name in ("results.csv", "summary.txt", "frontier.png") if (found.folder / name).exists()]
        print(f"{found.folder}: {', '.join(files)}")
    if found.best is None and not any(row["status"] == "trained" for row in found.rows):
        from ..tuner.budget import measured_costs, what_would_fit

        raise RuntimeError(f"no net fits: {what_would_fit(oracle.space, requirement, measured_costs(requirement))}")
    if not found.meets_requirement:
        raise RuntimeError("no net was found that meets the requirement; the best one is in the results")


def _numbers(name, text, remedy, kind=int):
    """Read numbers joined by commas, of which "1-4" stands for four; none where there is no text."""
    try:
        parts = [part.split("-", 1) for part in text.split(",")] if text else []
        ranges = ([kind(first)] if not last else range(int(first), int(last[0]) + 1) for first, *last in parts)
        numbers = tuple(number for numbers in ranges for number in numbers)
        if text is None or numbers:
            return numbers
    except ValueError:
        pass
    raise ValueError(f"{name} is {text!r}; {remedy}")
