"""How a net serves: LiteRT against TensorFlow in this process, then behind the server, on loopback, as ratios.

Everything is measured in turns in one run, so that a change of the machine's speed meets all.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from ..console import Progress
from ..serving.config import BATCH_SIZES
from .server import ask, median_load, running_server

__all__ = ["measure_load"]

ROUNDS = 5


def measure_load(
    source: str | os.PathLike, *, seconds: float = 5.0, clients: int = 8, verbose: bool = True
) -> list[dict]:
    """Compare an int8 net on LiteRT with its float and fake-quantized SavedModels, bare and served.

    Args:
        source: a run's folder, from which float and int8 are both made, or a name of the zoo, of either precision.
        seconds: of each load.
        clients: of the loads with several.
        verbose: say what is measured.

    Returns:
        One dict a figure: what, value, bound ("" where there is none), holds.

    Raises:
        FileNotFoundError, ValueError: as `serving_export.export`.
        RuntimeError: the server did not start.
    """
    from ..loading import resolve
    from ..serving.saved_model import export

    sources = _sources(source)
    if not seconds > 0 or clients < 1:
        raise ValueError(f"seconds is {seconds} and clients {clients}; both must be above 0")
    with tempfile.TemporaryDirectory() as folder, Progress(verbose) as progress:
        progress.say("exporting")
        made = {precision: export(one, folder, precision=precision) for precision, one in sources.items()}
        stock = _stock_saved_model(sources["float"], Path(folder) / "stock") if _is_grouped(sources["int8"]) else None
        int8 = resolve(sources["int8"]).int8_model()
        image = np.random.default_rng(0).integers(0, 256, (1, *int8.input_shape), np.uint8)
        progress.say("in this process, in turns")
        rows, bare = _bare(int8, made, stock, image, seconds)
        progress.say("behind the server, on loopback")
        with running_server([f"int8={sources['int8']}", f"float={made['float'].folder}"]) as url:
            rows += _served(url, image, seconds, clients, bare, progress)
    return [{"what": "", "value": 0.0, "bound": "", "holds": ""} | row for row in rows]


def _sources(source) -> dict[str, str | os.PathLike]:
    """The same net's float and int8 source."""
    from .. import zoo

    if zoo.is_published(source):
        card = zoo.card(str(source))
        found = {one.precision: one.name for one in zoo.list() if (one.spec, one.dataset) == (card.spec, card.dataset)}
        if set(found) != {"float", "int8"}:
            raise ValueError(f"the zoo has {source} in one precision alone; give a net that it has in both")
        return {precision: found[precision] for precision in ("float", "int8")} | {card.precision: str(source)}
    if not (Path(source) / "float.h5").is_file():
        raise FileNotFoundError(
            f"{source} is no run's folder (it has no float.h5) and no name of the zoo; `factorizenet list` shows them"
        )
    return {"float": source, "int8": source}


def _bare(int8, made, stock, image, seconds) -> tuple[list[dict], dict[str, float]]:
    """Figures without a server, and milliseconds at batch 1 of each."""
    calls = {"int8 LiteRT": _litert_call(int8, image)}
    for precision, exported in made.items():
        calls[f"{precision} SavedModel"] = _signature_call(exported.folder, image)
    bare = _in_turns(calls, seconds)
    rows = [{"what": f"{name}, ms an image", "value": round(ms, 3)} for name, ms in bare.items()]
    rows.append(_ratio("int8 LiteRT against the float SavedModel", bare["float SavedModel"] / bare["int8 LiteRT"], 4))
    ratio = bare["int8 SavedModel"] / bare["float SavedModel"]
    rows.append({"what": "fake-quantized SavedModel's time over float's", "value": round(ratio, 2)})
    if stock is not None:
        for batch, bound in ((1, None), (BATCH_SIZES[-1], 5)):
            images = np.repeat(image, batch, 0)
            calls = {
                "ours": _signature_call(made["float"].folder, images),
                "stock": _signature_call(stock, images / np.float32(255)),
            }
            found = _in_turns(calls, seconds)
            what = f"float SavedModel against one saved by unchanged tf_keras, batch {batch}"
            rows.append(_ratio(what, found["stock"] / found["ours"], bound))
    return rows, bare


def _served(url, image, seconds, clients, bare, progress) -> list[dict]:
    rows = []
    for count, batch in ((1, 1), (clients, 1), (clients, 16)):
        images, turns = np.repeat(image, batch, 0), {"int8": [], "float": []}
        kind = f"{_counted(count, 'client')}, {_counted(batch, 'image')} a request"
        progress.say(f"served, {kind}")
        for model in turns:
            ask(url, model, images, clients=1, seconds=seconds / ROUNDS)  # warm
        for _ in range(ROUNDS):
            for model, loads in turns.items():
                loads.append(ask(url, model, images, clients=count, seconds=seconds / ROUNDS))
        found = {model: median_load(loads) for model, loads in turns.items()}
        for model, load in found.items():
            rows.append({"what": f"served {model}, {kind}: images/s", "value": round(load.images_per_second)})
            rows.append({"what": f"served {model}, {kind}: p50 ms", "value": round(load.p50_ms, 2)})
            rows.append({"what": f"served {model}, {kind}: p99 ms", "value": round(load.p99_ms, 2)})
            rows.append({"what": f"served {model}, {kind}: failures", "value": load.failures})
        if (count, batch) == (1, 1):
            added = found["int8"].p50_ms - bare["int8 LiteRT"]
            what = f"ms that serving adds at p50, int8, {kind}"
            rows.append({"what": what, "value": round(added, 2), "bound": "< 5", "holds": added < 5})
        ratio = found["int8"].images_per_second / found["float"].images_per_second
        rows.append({"what": f"images/s, int8 LiteRT against float, {kind}", "value": round(ratio, 2)})
    return rows


def _litert_call(int8, image):
    def call():
        int8.predict(image, batch_size=1)

    return call


def _signature_call(folder, image):
    from .._keras import tf

    loaded = tf.saved_model.load(str(folder))
    signature, tensor = loaded.signatures["serving_default"], tf.constant(image)
    (key,) = signature.structured_input_signature[1]

    def call():
        signature(**{key: tensor})
        return loaded

    return call


def _stock_saved_model(source, folder):
    """The float net saved by tf_keras as it is: a clone has the slow grouped convolutions again."""
    from .._keras import keras, tf
    from ..loading import resolve

    model = resolve(source).float_model()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    tf.saved_model.save(clone, str(folder))
    return folder


def _is_grouped(source) -> bool:
    from ..loading import resolve
    from ..tflite.latency import int8_convolutions

    return any(groups > 1 for _, _, groups in int8_convolutions(resolve(source).tflite()))


def _in_turns(calls, seconds) -> dict[str, float]:
    """Milliseconds of each call: the median over rounds of the round's median."""
    rounds = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(5):
            call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times, until = [], time.perf_counter() + seconds / ROUNDS
            while time.perf_counter() < until:
                start = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - start))
            rounds[name].append(np.median(times))
    return {name: float(np.median(medians)) for name, medians in rounds.items()}


def _ratio(what, value, bound) -> dict:
    row = {"what": what, "value": round(value, 2)}
    return row if bound is None else row | {"bound": f">= {bound}", "holds": value >= bound}


def _counted(number, what) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
