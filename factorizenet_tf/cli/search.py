"""The command that searches."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from ..console import print_json, require_extra
from .options import (
    DataChannels,
    DataDir,
    DatasetOption,
    DataSize,
    Json,
    MacroOption,
    Quiet,
    amount_option,
    given_or,
    import_tensorflow,
    load_data,
    spec_from,
)

__all__ = ["search"]


def search(
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option(help="The search's folder; the same command continues it.")],
    max_macs: Annotated[int | None, amount_option("Of one image, e.g. 12.5M.")] = None,
    max_size_bytes: Annotated[int | None, amount_option("Of the .tflite, e.g. 100k.")] = None,
    max_ram_bytes: Annotated[int | None, amount_option("Of the TFLite Micro arena (extra micro).")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Of one inference here, one thread.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Floor of the int8 validation accuracy, 0..1: fewest MACs are looked for.")
    ] = None,
    width: Annotated[str, typer.Option(help="Channels of the stem; several joined by commas to choose from.")] = "16",
    size: DataSize = None,
    channels: DataChannels = None,
    macro: MacroOption = None,
    epochs: Annotated[int | None, typer.Option(help="Float epochs a net.", show_default="the recipe's")] = None,
    qat_epochs: Annotated[int | None, typer.Option(help="QAT epochs a net.", show_default="the recipe's")] = None,
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
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
):
    """Find the best net for a requirement, training few."""
    from ..recipe import recipe_for
    from ..requirement import Requirement
    from ..spec import max_level

    requirement = Requirement(
        max_macs=max_macs,
        max_size_bytes=max_size_bytes,
        max_ram_bytes=max_ram_bytes,
        max_latency_ms=max_latency_ms,
        min_accuracy=min_accuracy,
    )
    recipe_changes = {"epochs": epochs, "qat_epochs": qat_epochs, "seed": seed}
    recipe = recipe_for(dataset, **{name: value for name, value in recipe_changes.items() if value is not None})
    try:
        widths = tuple(int(part) for part in width.split(","))
    except ValueError:
        raise ValueError(f"width is {width!r}; it must be a multiple of 8, or several joined by commas: 8,16") from None
    for each in widths:  # what is wrong with the nets, and what is not installed, is said before anything is loaded
        max_level(spec_from("0", each, given_or(size, 32), given_or(channels, 3), 10, macro))
    for option, value in (("--max-ram-bytes", max_ram_bytes), ("--publish", publish)):
        if value is not None:
            require_extra("tflite_micro", extra="micro", what=f"{option}: measuring RAM")
    with contextlib.ExitStack() as stack:
        executor = None
        if ray is not None:
            from ..tuner.ray_executor import RayExecutor

            executor = stack.enter_context(RayExecutor(ray))
        import_tensorflow()
        data = load_data(dataset, size, channels, data_dir)
        spec = spec_from("0", widths[0], None, None, data.num_classes, macro, input_shape=data.image_shape)
        from ..tuner import search as searching
        from ..tuner.oracle import FactorizationOracle

        oracle = FactorizationOracle(
            spec, requirement, widths=widths, seed=seed, max_trials=max_trials, patience=patience
        )
        options = {"recipe": recipe, "inherit": inherit, "prune": prune, "executor": executor}
        found = searching.search(oracle, data, out=out, **options, verbose=not quiet)
    if publish is not None:
        searching.publish_found(found, publish, verbose=not quiet)
    if as_json:
        print_json({"best": found.best and found.best.name, "steps": found.steps, "nets": found.rows})
    else:
        print(found.summary)
        files = [name for name in ("results.csv", "summary.txt", "frontier.png") if (found.folder / name).exists()]
        print(f"{found.folder}: {', '.join(files)}")
    if not found.meets_requirement:
        raise RuntimeError("no net was found that meets the requirement; the best one is in the results")
