"""The commands of nets and of the zoo: cost tables, cards, verification, publishing."""

import dataclasses
import hashlib
import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option

from .. import zoo
from ..console import print_json, show, show_page
from ..zoo.catalog import none_within
from . import options

__all__ = ["describe", "gallery", "levels", "list_models", "publish", "show_card", "verify"]

Measure = Annotated[
    bool, Option("--measure", help="Also the .tflite's bytes, arena and milliseconds: seconds a net, once.")
]


def levels(
    width: options.Width = 16,
    size: options.Size = 32,
    channels: options.Channels = 3,
    classes: options.Classes = 10,
    macro: options.MacroOption = None,
    measure: Measure = False,
    as_json: options.Json = False,
):
    """Show the family: each uniform level's cost."""
    from ..cost import cost_rows
    from ..spec import max_level

    first = options.spec_from("0", width, options.image_shape(size, channels), classes, macro)
    rows = []
    specs = [dataclasses.replace(first, level=level) for level in range(max_level(first) + 1)]
    for spec in specs:
        costs = cost_rows(spec)
        groups = [layer.groups for layer in spec.plan() if layer.kernel == 3 and layer.name != "stem"]
        macs = sum(c.macs for c in costs)
        row = {"name": spec.name, "level": spec.level, "groups": _span(groups), "macs": macs}
        row["share_of_level_0"] = round(macs / (rows[0]["macs"] if rows else macs), 3)
        row |= {key: sum(getattr(cost, key) for cost in costs) for key in ("params", "weight_bytes")}
        rows.append(row | {"largest_activation_bytes": max(cost.activation_bytes for cost in costs)})
    if measure:
        rows = [row | costs for row, costs in zip(rows, _measured(specs))]
    show(rows, as_json, f"FactorizeNet, width {width}, {size}x{size}x{channels}, {classes} classes")


def describe(
    level: options.LevelOption = "2",
    width: options.Width = 16,
    size: options.Size = 32,
    channels: options.Channels = 3,
    classes: options.Classes = 10,
    macro: options.MacroOption = None,
    measure: Measure = False,
    as_json: options.Json = False,
):
    """Show one net, layer by layer."""
    from ..cost import cost_rows

    spec = options.spec_from(level, width, options.image_shape(size, channels), classes, macro)
    rows = [row._asdict() for row in cost_rows(spec)]
    costs = _measured([spec])[0] if measure else {}
    if as_json:
        print_json({"name": spec.name, "spec": json.loads(spec.to_json()), "layers": rows} | costs)
        return
    summed = ("macs", "params", "weight_bytes")
    total = {key: sum(row[key] for row in rows) if key in summed else "" for key in rows[0]} | {"layer": "total"}
    show([*rows, total], False, spec.name)
    if measure:
        show(
            [costs],
            False,
            "Measured on an untrained int8 conversion, one thread; RAM: arena of Micro's reference kernels",
        )


def _measured(specs) -> list[dict]:
    """Measure each net's .tflite, once on this machine: bytes, arena ("" without the extra `micro`) and milliseconds."""
    from ..console import Progress
    from ..files import cache_folder
    from ..machine import cpu_name, versions
    from ..requirement import MEASURED
    from ..tuner.costs import MeasuredCosts

    has_micro = importlib.util.find_spec("tflite_micro") is not None
    measured = MeasuredCosts([cost for cost in MEASURED if has_micro or cost != "ram_bytes"])
    here = json.dumps([specs[0].input_shape, specs[0].num_classes, cpu_name(), versions()])  # what no name says
    folder = cache_folder() / "costs" / hashlib.sha256(here.encode()).hexdigest()[:16]
    measured.load(folder)
    rows = []
    with Progress() as progress:
        for number, spec in enumerate(specs):
            if not measured.cached(spec):
                progress.bar(f"measuring {spec.name}", len(specs), done=number)
            rows.append(dict.fromkeys(MEASURED, "") | measured.measure(spec))
    return rows


def list_models(
    context: Context,
    max_macs: options.MaxMacs = None,
    max_size_bytes: options.MaxSizeBytes = None,
    max_ram_bytes: options.MaxRamBytes = None,
    max_latency_ms: options.MaxLatencyMs = None,
    precision: Annotated[str | None, Option(help="Only float or int8 models.")] = None,
    dataset: Annotated[str | None, Option(help="Only models of this data set, e.g. cifar10.")] = None,
    all_versions: Annotated[bool, Option("--all-versions", help="Not only the newest of each name.")] = False,
    best: Annotated[bool, Option("--best", help="Only the best by validation accuracy (int8 by default).")] = False,
    zoo_: options.ZooOption = None,
    as_json: options.Json = False,
):
    """List the published models within limits, such as 12.5M MACs."""
    limits = options.limits_from(context)
    if best and all_versions:
        raise ValueError("--best looks at the newest versions; leave out --all-versions")
    if best:
        cards = zoo.Cards([zoo.best(precision=precision or "int8", dataset=dataset, zoo_dir=zoo_, **limits)])
    else:
        cards = zoo.list(precision=precision, dataset=dataset, all_versions=all_versions, zoo_dir=zoo_, **limits)
    if as_json:
        print_json([card.row() for card in cards])
    elif not cards and limits:
        among = zoo.list(precision=precision, dataset=dataset, all_versions=all_versions, zoo_dir=zoo_)
        print(none_within(among, **limits) if among else among)
    else:
        print(cards)


def show_card(name: options.Name, zoo_: options.ZooOption = None, as_json: options.Json = False):
    """Show a published model's card."""
    from ..zoo.cards import index_to_json
    from ..zoo.pages import card_page

    card = zoo.card(name, zoo_dir=zoo_)
    if as_json:
        print(json.dumps(json.loads(index_to_json(zoo.Cards([card])))["models"][0], indent=2))
    else:
        show_page(card_page(card))


def verify(
    names: Annotated[list[str] | None, options.net("Names of `factorizenet list`.")] = None,
    every: Annotated[bool, Option("--all", help="All models.")] = False,
    precision: Annotated[str | None, Option(help="With --all: float or int8 only.")] = None,
    zoo_: options.ZooOption = None,
    data_dir: options.DataDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
):
    """Check published models against their cards.

    Hashes, sizes, costs, operators, RAM, agreement with Keras, and accuracy on whole splits where the data is on this
    machine. Exit code 1 where a check fails.
    """
    if every == bool(names):
        raise ValueError("give names of models, or --all")
    if names and precision is not None:
        raise ValueError("--precision is for --all; leave it out")
    from ..zoo.verification import verify_all

    names = None if every else names
    if data_dir is not None:
        cards = zoo.list(zoo_dir=zoo_) if every else [zoo.card(name, zoo_dir=zoo_) for name in names]
        options.check_data_dir(data_dir, *(card.dataset_name for card in cards))
    results = verify_all(names, precision=precision, zoo_dir=zoo_, data_dir=data_dir, verbose=not quiet)
    rows = [row for result in results for row in result.rows()]
    if as_json:
        print_json(rows)
    else:
        if failures := [row for row in rows if row["passed"] == "FAILED"]:
            show(failures, False, "What failed")
        passed = sum(row["passed"] == "ok" for row in rows)
        skipped = Counter((row["what"], row["found"]) for row in rows if row["passed"] == "skipped")
        notes = "".join(f"; {what} of {count} not checked: {why}" for (what, why), count in skipped.items())
        print(f"{len(results)} models, {passed} of {len(rows)} checks passed{notes}")
    if failed := [result.name for result in results if not result.passed]:
        raise RuntimeError(f"{len(failed)} of {len(results)} models are not what their cards say: {', '.join(failed)}")


def publish(
    runs: Annotated[list[Path] | None, Argument(help="Folders of finished trainings.")] = None,
    zoo_: Annotated[str | None, Option("--zoo", help="The zoo folder; made where it is not there.")] = None,
    name: Annotated[
        str | None, Option(help="Of a single run, without the precision.", show_default="the net's own")
    ] = None,
    licence: Annotated[
        str | None, Option(help="Of the weights, e.g. CC-BY-4.0 (SPDX).", show_default="none stated")
    ] = None,
    latencies: Annotated[bool, Option("--latencies", help="Measure all latencies anew, in one run.")] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
):
    """Add trainings to a zoo folder, each as -float and -int8."""
    if zoo_ is None or not (runs or latencies):
        raise ValueError("give the runs' folders and --zoo FOLDER, or --latencies --zoo FOLDER")
    if licence is not None and not runs:
        raise ValueError("--licence is for runs that are published; give their folders")
    if name is not None and len(runs or ()) != 1:
        raise ValueError(f"--name {name} is for one run, not {len(runs or ())}; publish each with its own")
    cards = []
    for run in runs or ():
        cards += zoo.publish(run, zoo_dir=zoo_, name=name, licence=licence, verbose=not quiet)
    if latencies:
        from ..zoo.publishing import measure_latencies

        cards = measure_latencies(Path(zoo_).expanduser(), verbose=not quiet)
    if as_json:
        print_json([card.row() for card in cards])
    else:
        print(zoo.Cards(cards))


def gallery(
    context: Context,
    out: Annotated[Path, Option(help="The folder; a gallery that is there is replaced.")] = Path("site"),
    zoo_: options.ZooOption = None,
    runtime: Annotated[
        Path | None, Option(help="A folder with LiteRT.js as `npm pack` writes it.", show_default="fetched once")
    ] = None,
    serve: Annotated[bool, Option("--serve", help="Serve it on this machine until Ctrl-C.")] = False,
    port: Annotated[int, Option(help="With --serve; 0 takes a free one.")] = 8000,
):
    """Write a zoo as a web page; its int8 nets run in the browser."""
    from ..zoo.gallery import build_gallery, serve_gallery

    if not serve:
        options.refuse_unused(context, "without --serve nothing is served", "port")
    cards = build_gallery(out, zoo_dir=zoo_, runtime=runtime)
    remedy = "any web server can serve it, and `factorizenet gallery --serve` does"
    print(f"{out}: {len(cards)} models; {remedy}", flush=True)
    if serve:
        serve_gallery(out, port=port, started=lambda url: print(f"{url} until Ctrl-C", flush=True))


def _span(groups):
    low, high = min(groups), max(groups)
    return str(low) if low == high else f"{low}-{high}"
