"""The command that searches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import print_json
from .options import (
    DataChannels,
    DataDir,
    DatasetOption,
    DataSize,
    Json,
    Quiet,
    Stages,
    given_or,
    import_tensorflow,
    load_data,
    spec_from,
)

__all__ = ["search"]


def search(
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option(help="The search's folder; the same command continues it.")],
    max_macs: Annotated[int | None, typer.Option(help="Of one image.")] = None,
    max_size_bytes: Annotated[int | None, typer.Option(help="Of the .tflite.")] = None,
    max_ram_bytes: Annotated[int | None, typer.Option(help="Of the TFLite Micro arena.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Of one inference here, one thread.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Floor of the int8 validation accuracy, 0..1: fewest MACs are looked for.")
    ] = None,
    width: Annotated[str, typer.Option(help="Channels of the stem; several joined by commas to choose from.")] = "16",
    size: DataSize = None,
    channels: DataChannels = None,
    stages: Stages = None,
    epochs: Annotated[int | None, typer.Option(help="Float epochs a net.", show_default="the recipe's")] = None,
    qat_epochs: Annotated[int | None, typer.Option(help="QAT epochs a net.", show_default="the recipe's")] = None,
    max_trials: Annotated[int | None, typer.Option(help="Nets to train at most.", show_default="as needed")] = None,
    patience: Annotated[int, typer.Option(help="Rounds without a better net before the end.")] = 3,
    inherit: Annotated[bool, typer.Option("--inherit", help="Start nets from the weights of the one before.")] = False,
    prune: Annotated[bool, typer.Option(help="Give up hopeless trainings early.")] = True,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    publish: Annotated[Path | None, typer.Option(help="Add the frontier and the best net to this zoo folder.")] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
):
    """Find the best net for a requirement, training few.

    Under KERASTUNER_TUNER_ID=chief (then worker0, worker1, ...), KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT the
    same command is the chief, or a worker of it; they share --out.
    """
    from ..recipe import recipe_for
    from ..requirement import Requirement
    from ..spec import max_level
    from ..tuner.space import Space, check_budget

    requirement = Requirement(
        max_macs=max_macs,
        max_size_bytes=max_size_bytes,
        max_ram_bytes=max_ram_bytes,
        max_latency_ms=max_latency_ms,
        min_accuracy=min_accuracy,
    )
    given = {"epochs": epochs, "qat_epochs": qat_epochs, "seed": seed}
    recipe = recipe_for(dataset, **{k: v for k, v in given.items() if v is not None})
    try:
        widths = tuple(int(part) for part in width.split(","))
    except ValueError:
        raise ValueError(f"width is {width!r}; it must be a multiple of 8, or several joined by commas: 8,16") from None
    for each in widths:  # an error here costs no waiting
        max_level(spec_from("0", each, given_or(size, 32), given_or(channels, 3), 10, stages))
    import_tensorflow()
    data = load_data(dataset, size, channels, data_dir)
    spec = spec_from("0", widths[0], None, None, data.num_classes, stages, input_shape=data.image_shape)
    check_budget(Space(spec, widths), requirement)
    from ..tuner.search import search as search_nets

    found = search_nets(
        spec,
        data,
        requirement,
        out=out,
        widths=widths,
        recipe=recipe,
        inherit=inherit,
        prune=prune,
        seed=seed,
        max_trials=max_trials,
        patience=patience,
        publish=publish,
        verbose=not quiet,
    )
    if found is None:  # a worker; its chief has the results
        return
    if as_json:
        print_json({"best": found.best and found.best.name, "steps": found.steps, "nets": found.rows})
    else:
        print(found.summary)
        print(f"{found.folder}: results.csv, summary.txt, frontier.png")
    if not found.reached:
        raise RuntimeError("no net was found that meets the requirement; the best one is in the results")
