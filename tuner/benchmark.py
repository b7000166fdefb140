"""Measure the package's speed, memory and agreement as figures with goals; ratios are measured in turns in one run.

    python tuner/benchmark.py --part training --dataset cifar10 --seconds 4

Parts: training (every level against level 0 and against unchanged tf_keras, with oneDNN on, off, and held to AVX2;
waiting for data, memory, the analysis), data (decoding, loading what is decoded, training from it), memory (of a whole training on
more pixels than it may take), search (its start and proposals), zoo (listing, loading, verification), micro
(TensorFlow Lite Micro against LiteRT), serving (an int8 net bare and behind `factorizenet serve` on loopback). All parts
take about half an hour on 2 cores. Exits 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import math
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

import factorizenet_tf as fnet
from factorizenet_tf.console import Progress, show
from factorizenet_tf.machine import cpu_name
from factorizenet_tf.macro import DEFAULT_STAGES
from factorizenet_tf.spec import ModelSpec, max_level
from factorizenet_tf.tflite.latency import time_in_turns
from factorizenet_tf.tflite.micro import micro_outputs

ROUNDS = 3
BATCH = 128
# TensorFlow reads these at import, so each is measured in a process of its own. They stand in for other processors.
PROCESSORS = {
    "oneDNN on": {"TF_ENABLE_ONEDNN_OPTS": "1"},
    "oneDNN held to AVX2": {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN off": {"TF_ENABLE_ONEDNN_OPTS": "0"},
}
STOCK_LEVELS = (2, 3, 4)  # groups 4, 8 and 16: where XLA's kernel is slowest
DATA_SIDE, DATA_FILES = 96, (20_000, 110_000)  # JPEG of a side; decoded, and loaded
CALIBRATION_IMAGES, SENSITIVITY_IMAGES = 1_024, 2_000  # of the analysis
SEARCH_STAGES, SEARCH_WIDTHS = ((1, 1), *DEFAULT_STAGES), (8, 16, 24, 32, 40, 48)  # more than 10,000 nets
ZOO_GOALS = {"names()": 0.05, "list()": 0.05, "load() as .tflite": 0.3, "TensorFlow imported": 0, "load() as Keras": 6}
MICRO_IMAGES = 200
MICRO_GOALS = {"LiteRT's reference kernels": 1, "XNNPACK": 4}  # steps; XNNPACK rounds otherwise at each layer
CLIENTS = ((1, 1), (8, 1), (8, 16))  # (clients, images a request)
REQUESTS, SERVER_START_SECONDS = 200, 120


def main(arguments: list[str] | None = None) -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument("--dataset", default="digits", help="training: digits or a TFDS name")
    parser.add_argument("--width", type=int, default=16, help="training: channels of the stem")
    parser.add_argument("--levels", type=lambda text: [int(level) for level in text.split(",")], help="default: all")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, over all rounds")
    parser.add_argument(
        "--files", type=int, nargs=2, default=DATA_FILES, help="data, memory: files decoded, and loaded"
    )
    parser.add_argument("--net", default="fnet-l2-int8", help="serving: an int8 net of the zoo")
    parser.add_argument("--zoo", help="zoo, micro: another zoo's folder or address")
    parser.add_argument("--json", action="store_true", help="print JSON in the place of a table")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # what `in_own_process` asks for
    options = parser.parse_args(arguments)
    if options.job:
        options = argparse.Namespace(**json.loads(options.job))
        print(json.dumps(JOBS[options.job](options)))
        return 0
    if not options.seconds > 0:
        parser.error(f"--seconds is {options.seconds}; it must be above 0")
    rows = []
    with Progress(True) as progress:
        for part in PARTS if options.part == "all" else (options.part,):
            rows += [{"part": part} | row for row in PARTS[part](options, progress)]
    show(rows, options.json, f"{cpu_name()}: benchmark")
    return int(any(row["reached"] is False for row in rows))


def row(what: str, value: float, sign: str = "", bound: float = 0) -> dict:
    """A figure and whether it reaches its goal, e.g. ">=", 0.8; without a goal `reached` is ""."""
    value, goal = float(value), f"{sign} {bound:g}" if sign else ""
    reached = {"": "", ">=": value >= bound, "<=": value <= bound}[sign]
    return {"what": what, "value": round(value, 4), "goal": goal, "reached": reached}


def in_own_process(job: str, options, environment: dict[str, str] | None = None):
    """Do a job by this script in a fresh process and give what it printed last."""
    command = [sys.executable, __file__, "--job", json.dumps(vars(options) | {"job": job})]
    variables = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | (environment or {})
    result = subprocess.run(command, capture_output=True, text=True, env=variables)
    if result.returncode:
        raise RuntimeError(f"the measurement {job!r} failed: {result.stderr.strip().splitlines()[-1:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


# Training


def measure_training(options, progress) -> list[dict]:
    """Levels against level 0, QAT against float, and levels against unchanged tf_keras; waiting, memory, the analysis."""
    rows = []
    for processor, environment in PROCESSORS.items():
        progress.say(f"training every level, {processor}")
        for figure in in_own_process("levels", options, environment):
            rows.append(figure | {"what": f"{processor}: {figure['what']}"})
    progress.say("waiting for data, the analysis, memory")
    return rows + in_own_process("resources", options)


def work_levels(options) -> list[dict]:
    """Train every level for a while, float, QAT and as unchanged tf_keras has it, in turns."""
    from factorizenet_tf._keras import keras

    on = os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    data, spec = _data_and_spec(options)
    levels, steps = sorted({0, *(options.levels or range(max_level(spec(0)) + 1))}), {}
    for level in levels:
        model = fnet.build(spec(level))
        steps["float", level] = _training_step(model, data)
        steps["qat", level] = _training_step(fnet.quantize_aware(model), data)
    times = _times(steps, options.seconds)
    speed = 1e3 * min(BATCH, len(data.train)) / np.median(times["float", 0])
    rows = [row("level 0, images/s", speed)]
    for level in levels[1:]:
        goal = (">=", 0.8) if on else ()
        rows.append(row(f"level {level} against level 0", _ratio(times["float", 0], times["float", level]), *goal))
    for level in levels:
        goal = (">=", 0.6) if on else ()
        rows.append(row(f"level {level}, QAT against float", _ratio(times["float", level], times["qat", level]), *goal))
    # XLA's steps take seconds, so each is measured beside its level alone. A clone has tf_keras's own path again.
    for level in [level for level in STOCK_LEVELS if level in levels]:
        clone = _training_step(keras.models.clone_model(fnet.build(spec(level))), data)
        pair = _times({"ours": steps["float", level], "stock": clone}, 0)
        ratio = _ratio(pair["stock"], pair["ours"])
        rows.append(row(f"level {level} against unchanged tf_keras", ratio, ">=", 15 if on else 10))
    return rows


def work_resources(options) -> list[dict]:
    """Train level 2 for a while, fetching included, evaluate it, and analyse it without and with sensitivity."""
    data, spec = _data_and_spec(options)
    model = fnet.build(spec(2))
    step, source, start, waited = _training_step(model, data), _endless_batches(data), time.perf_counter(), 0.0
    while time.perf_counter() - start < options.seconds:
        before = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - before
        step(batch)
    waiting = waited / (time.perf_counter() - start)
    fnet.accuracy(model, data.test)
    split = fnet.Split(data.train.images[:SENSITIVITY_IMAGES], data.train.labels[:SENSITIVITY_IMAGES])
    images = {"calibration": data.calibration(CALIBRATION_IMAGES), "evaluation": split}
    without, both = (_seconds(lambda s=s: fnet.analyze(model, **images, sensitivity=s)) for s in (False, True))
    return [
        row("share of a training step spent waiting for data", waiting, "<=", 0.05),
        row("level 2: analysis, s", without, "<=", 60),
        row(f"level 2: sensitivity on {len(split):,} images, s", max(0.0, both - without), "<=", 300),
        row("peak memory of training and analysis, GB", _peak_bytes() / 1e9, "<=", 3),
    ]


def _peak_bytes() -> int:
    """Give this program's own peak: what `getrusage` says begins, on Linux, with that of the process which started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _data_and_spec(options):
    data = fnet.load_dataset(options.dataset)
    shape, classes = data.image_shape, data.num_classes
    return data, lambda level: ModelSpec(level, width=options.width, input_shape=shape, num_classes=classes)


def _endless_batches(data):
    from factorizenet_tf.training.loop import batches

    recipe, epoch = fnet.Recipe(batch_size=min(BATCH, len(data.train))), 0
    while True:
        yield from batches(data.train, recipe, "float", epoch)
        epoch += 1


def _training_step(model, data) -> Callable:
    """A function that trains one batch, the first of the data unless another is given."""
    from factorizenet_tf.training.loop import compiled_step, make_step

    recipe = fnet.Recipe(batch_size=min(BATCH, len(data.train)))
    compiled = compiled_step(make_step(model, recipe))
    first = next(_endless_batches(data))

    def step(batch=first):
        images, labels, seed = batch
        return float(compiled(images, labels, 0.01, seed)[0])

    return step


def _times(calls: dict, seconds: float) -> dict:
    times = time_in_turns(list(calls.values()), rounds=ROUNDS, seconds=seconds / ROUNDS, runs=1)
    return dict(zip(calls, times.T))


def _ratio(slower, faster) -> float:
    """The median over rounds, so that a change of the machine's speed meets both."""
    return float(np.median(slower / faster))


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# Data


def measure_data(options, progress) -> list[dict]:
    """A folder of JPEG of 96x96: decoded, loaded again, trained from the mapped file and from memory."""
    progress.say("decoding, loading and training from a cache")
    return _with_folder("data", options)


def measure_memory(options, progress) -> list[dict]:
    """A folder of JPEG of 96x96, read and trained on as `train` does: the memory of it that is no file's."""
    progress.say("training on many images")
    return _with_folder("memory", options)


def _with_folder(job, options):
    with tempfile.TemporaryDirectory() as folder:
        return in_own_process(job, options, {"FACTORIZENET_CACHE": f"{folder}/cache", "BENCHMARK_FOLDER": folder})


def _draw_images(folder, decoded, linked):
    """Write two folders of classes: few, of so many files, and many, of so many links to them."""
    random = np.random.default_rng(0)
    smooth = random.integers(0, 256, (decoded, 6, 6, 3)).astype(np.uint8)
    for i, image in enumerate(smooth):
        for name, copies in (("few", range(i, i + 1)), ("many", range(i, linked, decoded))):
            for j in copies:
                path = folder / name / str(j % 10) / f"{j}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                if name == "few":
                    first, picture = path, Image.fromarray(image).resize((DATA_SIDE, DATA_SIDE))
                    picture.save(path, quality=90)
                else:
                    os.link(first, path)


def work_data(options) -> list[dict]:
    """Decode a folder of as many files as asked for, load it and one of as many links, and train from it both ways."""
    folder, (decoded, linked), figures = Path(os.environ["BENCHMARK_FOLDER"]), options.files, []
    _draw_images(folder, decoded, linked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of links, that they are the same image
        seconds = _seconds(lambda: fnet.load_dataset(folder / "few", input_shape=(DATA_SIDE, DATA_SIDE, 3)))
        figures.append(
            row(f"{decoded:,} JPEG of {DATA_SIDE}x{DATA_SIDE} decoded, images/s", decoded / seconds, ">=", 4000)
        )
        fnet.load_dataset(folder / "many")
        what = f"{linked:,} decoded images loaded, s"
        figures.append(row(what, _seconds(lambda: fnet.load_dataset(folder / "many")), "<=", 2))
        mapped = fnet.load_dataset(folder / "many")
    part = slice(0, 20_000)
    both = {
        "mapped": fnet.Split(mapped.train.images[part], mapped.train.labels[part]),
        "memory": fnet.Split(mapped.train.images[part].copy(), mapped.train.labels[part]),
    }
    model = fnet.build(ModelSpec(4, width=8, input_shape=mapped.image_shape, num_classes=10))
    step = _training_step(model, mapped)
    sources = {name: _endless_batches(dataclasses.replace(mapped, train=split)) for name, split in both.items()}
    calls = {name: lambda source=source: step(next(source)) for name, source in sources.items()}
    times = _times(calls, options.seconds)
    ratio = _ratio(times["memory"], times["mapped"])
    return [*figures, row("images/s of training from the mapped file over those from memory", ratio, ">=", 0.9)]


def work_memory(options) -> list[dict]:
    """Read a folder, train an epoch in float and one in QAT, convert and evaluate, while a thread looks at the memory (Linux)."""
    folder, ended = Path(os.environ["BENCHMARK_FOLDER"]), threading.Event()
    _draw_images(folder, *options.files)
    with ThreadPoolExecutor(1) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of links, that they are the same image
        watching = pool.submit(_peak_anonymous, ended)
        try:
            data = fnet.load_dataset(folder / "many")
            spec = ModelSpec(6, width=8, input_shape=data.image_shape, num_classes=data.num_classes)
            recipe = fnet.recipe_for(folder / "many", epochs=1, qat_epochs=1)
            fnet.train(spec, data, out=folder / "run", recipe=recipe, verbose=False)
        finally:
            ended.set()
    pixels = sum(split.images.nbytes for split in data.splits.values()) / 1e9
    what = f"training on {options.files[1]:,} images, {pixels:.1f} GB of pixels: peak anonymous memory, GB"
    return [row(what, watching.result() / 1e9, "<=", 2.5)]


def _peak_anonymous(ended) -> int:
    """Bytes of this process that no file backs, at most, until the end; what is mapped can be dropped any time."""
    peak = 0
    while not ended.wait(0.05):
        (kilobytes,) = re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        peak = max(peak, 1024 * int(kilobytes))
    return peak


# Search


def measure_search(options, progress) -> list[dict]:
    """A search's start in a fresh process, and the CPU time of each proposal with a formula for a training."""
    progress.say("a search's start and proposals")
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    in_own_process("search_start", options)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    nets, times = proposals(SEARCH_WIDTHS)
    over = f"{nets:,} nets, {len(times)} proposals: CPU ms"
    return [
        row("a search's start to its first proposal, TensorFlow included, s", seconds, "<=", 10),
        row("of that CPU s, which a busy machine does not change", cpu, "<=", 10),
        row(f"{over}, mean", 1e3 * sum(times) / len(times), "<=", 20),
        row(f"{over}, slowest", 1e3 * max(times), "<=", 20),
    ]


def work_search_start(options) -> bool:
    """Start a search, up to its first proposal."""
    data = fnet.load_dataset("digits", input_shape=(16, 16, 1))
    oracle = fnet.tuner.FactorizationOracle(ModelSpec(0, input_shape=data.image_shape), max_macs=2_000_000)
    with tempfile.TemporaryDirectory() as folder:
        tuner = fnet.tuner.FactorizationTuner(oracle, data, directory=folder)
        return tuner.oracle.create_trial("tuner0").status == "RUNNING"


def proposals(widths) -> tuple[int, list[float]]:
    """(nets in the space, CPU seconds of each proposal, its files included) of a whole search under a budget."""
    from factorizenet_tf.tuner.oracle import FactorizationOracle
    from factorizenet_tf.tuner.space import macs

    oracle = FactorizationOracle(ModelSpec(0, stages=SEARCH_STAGES), max_macs=20_000_000, widths=widths)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        oracle._set_project_dir(folder, "search")
        while True:
            start = time.thread_time()
            trial = oracle.create_trial("tuner0")
            times.append(time.thread_time() - start)
            if trial.status != "RUNNING":
                return oracle.space.count(), times
            accuracy = 0.5 + 0.02 * math.log(macs(oracle.space.net_from(trial.hyperparameters.values)))
            oracle.update_trial(trial.trial_id, {oracle.objective.name: accuracy})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)


# The zoo


def measure_zoo(options, progress) -> list[dict]:
    """The first calls of a fresh process, and the verification of all int8 models."""
    from factorizenet_tf.zoo.verification import verify_all

    names = [card.name for card in fnet.zoo.list(precision="int8", zoo_dir=options.zoo)]
    if not names:
        return []
    progress.say("listing, loading and verifying")
    first = in_own_process("zoo_calls", options)
    rows = [row(f"first calls of a process, s: {what}", first[what], "<=", bound) for what, bound in ZOO_GOALS.items()]
    start = time.perf_counter()
    results = verify_all(names, zoo_dir=options.zoo, verbose=False)
    images = sum("test accuracy" in check.what for result in results for check in result.checks)
    what = f"verification of {len(names)} int8 models, {images} of them on their whole test split, s"
    return [*rows, row(what, time.perf_counter() - start, "<=", 120)]


def work_zoo_calls(options) -> dict:
    """Time the first calls of the zoo, those that need no TensorFlow first."""
    zoo, where = fnet.zoo, {"zoo_dir": options.zoo}
    seconds = [_seconds(lambda: zoo.names(**where)), _seconds(lambda: zoo.list(**where))]
    name = zoo.list(precision="int8", **where)[0].name
    seconds += [_seconds(lambda: zoo.load(name, "tflite", **where)), "tensorflow" in sys.modules]
    import tensorflow_model_optimization  # noqa: F401

    import factorizenet_tf._keras  # noqa: F401

    return dict(zip(ZOO_GOALS, [*seconds, _seconds(lambda: zoo.load(name, **where))]))


# TensorFlow Lite Micro


def measure_micro(options, progress) -> list[dict]:
    """How far its outputs are from LiteRT's, on 200 test images (where they are here) and 200 of noise of each net."""
    rows, tests = [], {}
    for card in fnet.zoo.list(precision="int8", zoo_dir=options.zoo):
        progress.say(f"{card.name}: TFLite Micro, LiteRT's reference kernels, XNNPACK")
        content = fnet.zoo.load(card.name, "path", zoo_dir=options.zoo).read_bytes()
        key = card.dataset_name, card.spec.input_shape
        if key not in tests:
            with contextlib.suppress(OSError, ValueError):
                tests[key] = fnet.load_dataset(key[0], input_shape=key[1], download=False).test.images[:MICRO_IMAGES]
        noise = np.random.default_rng(0).integers(0, 256, (MICRO_IMAGES, *key[1]), np.uint8)
        for kind, images in {"test images": tests.get(key), "images of noise": noise}.items():
            if images is not None:
                for (what, value), bound in zip(kernel_distances(content, images), MICRO_GOALS.values()):
                    rows.append(row(f"{card.name}, {kind}: {what}", value, "<=", bound))
    return rows


def kernel_distances(content: bytes, images: np.ndarray) -> list[tuple[str, int]]:
    """(what, largest distance in steps of the output) of TFLite Micro from each of LiteRT's kernels."""
    model, micro = fnet.Int8Model(content), micro_outputs(content, images)
    results = []
    for kernels, predict in zip(MICRO_GOALS, (model.predict_reference, model.predict_quantized)):
        other = predict(images)
        steps, same = np.abs(micro.astype(int) - other), np.mean(micro.argmax(1) == other.argmax(1))
        what = f"largest distance in LSB from {kernels} ({np.mean(steps == 0):.2%} equal, class {same:.1%})"
        results.append((what, int(steps.max())))
    return results


# Serving


def measure_serving(options, progress) -> list[dict]:
    """An int8 net bare, then behind the server; the clients are threads of this process, on the same cores."""
    int8 = fnet.zoo.load(options.net, "tflite", zoo_dir=options.zoo)
    progress.say(f"{options.net}, bare and behind the server on loopback")
    image = np.random.default_rng(0).integers(0, 256, (1, *int8.input_shape), np.uint8)
    bare = float(np.median(time_in_turns([lambda: int8.predict(image, batch_size=1)], rounds=ROUNDS, runs=20)))
    rows = [row("int8 LiteRT, bare, ms an image", bare)]
    with running_server(options.net) as port:
        for clients, images in CLIENTS:
            batch = np.repeat(image, images, 0)
            ask(port, options.net, batch, 1)  # warms up
            times, seconds = ask(port, options.net, batch, clients)
            kind = f"served, {clients} clients, {images} images a request"
            p50, p99 = np.percentile(times, (50, 99))
            rows += [row(f"{kind}: images/s", len(times) * images / seconds)]
            rows += [row(f"{kind}: p50 ms", p50), row(f"{kind}: p99 ms", p99)]
            if (clients, images) == CLIENTS[0]:
                rows.append(row("ms that serving adds at p50", p50 - bare, "<=", 5))
    return rows


@contextlib.contextmanager
def running_server(name: str):
    """Run `factorizenet serve` in a process of its own on a free port of loopback; gives the port once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "factorizenet_tf.cli", "serve", name, "--host", "127.0.0.1", "--port", str(port)]
    process, end = subprocess.Popen(command, stdout=subprocess.DEVNULL), time.monotonic() + SERVER_START_SECONDS
    try:
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"`{' '.join(command[2:])}` does not answer")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def ask(port: int, name: str, images: np.ndarray, clients: int) -> tuple[list[float], float]:
    """(ms of each request, seconds of all): clients at once share REQUESTS, each asking as fast as it is answered."""
    body = json.dumps({"instances": images.tolist()}).encode()

    def work(_):
        connection, times = http.client.HTTPConnection("127.0.0.1", port, timeout=30), []
        for _ in range(REQUESTS // clients):
            start = time.perf_counter()
            connection.request("POST", f"/v1/models/{name}:predict", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"the server answered {answer.status}: {content[:200].decode(errors='replace')}")
            times.append(1e3 * (time.perf_counter() - start))
        connection.close()
        return times

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = [ms for one in pool.map(work, range(clients)) for ms in one]
    return times, time.perf_counter() - start


PARTS = {
    part.__name__.removeprefix("measure_"): part
    for part in (
        measure_training,
        measure_data,
        measure_memory,
        measure_search,
        measure_zoo,
        measure_micro,
        measure_serving,
    )
}
JOBS = {
    job.__name__.removeprefix("work_"): job
    for job in (work_levels, work_resources, work_data, work_memory, work_search_start, work_zoo_calls)
}

if __name__ == "__main__":
    sys.exit(main())
