"""Speed and memory as ratios measured in one run, each with the bound that the package keeps to."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ..console import Progress

__all__ = ["measure"]

BATCH = 128
ROUNDS = 3
SENSITIVITY_IMAGES = 2_000
COMPARED_LEVELS = (2, 3, 4)  # groups 4, 8 and 16: where XLA's kernel is slowest


def measure(
    *, dataset: str = "digits", width: int = 16, seconds: float = 5.0, run=None, data_dir=None, verbose: bool = True
) -> list[dict]:
    """Train every uniform level for a while, float and QAT, in turns; then unchanged tf_keras, memory, analysis, agreement.

    Args:
        dataset: real images to train on, as `load_dataset` names them.
        width: of the nets.
        seconds: of each measurement, over all rounds.
        run: folder of a finished run: its .tflite is compared with its QAT model, too.
        data_dir: where TFDS keeps its data.
        verbose: say what is measured.

    Returns:
        One dict a figure: what, value, bound, holds. Ratios of images/s are medians over rounds in turn, so that a
        change of the machine's speed meets all.
    """
    from ..data import load_dataset
    from ..runs import load_run

    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}; it must be above 0")
    run = None if run is None else load_run(run)  # an error here costs no waiting
    rows = []
    with Progress(verbose) as progress:
        data = load_dataset(dataset, data_dir=data_dir)
        speeds = _levels_in_turn(data, width, seconds, progress)
        base = speeds["float", 0]
        for (kind, level), speed in speeds.items():
            if kind == "float":
                rows.append(
                    _row(f"level {level}: training images/s against level 0 ({base:.0f}/s)", speed / base, ">=", 0.8)
                )
        for (kind, level), speed in speeds.items():
            if kind == "qat":
                rows.append(
                    _row(f"level {level}: QAT images/s against float", speed / speeds["float", level], ">=", 0.6)
                )
        for level in COMPARED_LEVELS:
            if ("float", level) in speeds:
                progress.say(f"unchanged tf_keras, level {level}, in a process of its own")
                job = {"job": "stock", "level": level, "width": width, "dataset": dataset, "data_dir": data_dir}
                stock = _worker(job)["images_per_second"]
                what = f"level {level}: training images/s against unchanged tf_keras ({stock:.0f}/s)"
                rows.append(_row(what, speeds["float", level] / stock, ">=", 15))
        progress.say("memory and waiting for data, in a process of its own")
        result = _worker(
            {"job": "memory", "width": width, "seconds": seconds, "dataset": dataset, "data_dir": data_dir}
        )
        rows.append(_row("share of a training step spent waiting for data", result["waiting"], "<=", 0.05))
        rows.append(_row(f"peak memory of training on {data.title}, GB", result["peak_bytes"] / 1e9, "<=", 3))
        progress.say("the layer-wise analysis, in a process of its own")
        result = _worker({"job": "analysis", "width": width, "dataset": dataset, "data_dir": data_dir})
        what = f"level 2: analysis of {result['calibration']:,} images, "
        rows.append(_row(what + "seconds", result["seconds"], "<=", 60))
        rows.append(_row(what + "peak memory, GB", result["peak_bytes"] / 1e9, "<=", 2))
        what = f"level 2: sensitivity on {result['images']:,} images, seconds"
        rows.append(_row(what, result["sensitivity_seconds"], "<=", 300))
        if run is not None:
            rows += _agreement_rows(run, data_dir)
    return rows


def _row(what, value, sign, bound):
    holds = value >= bound if sign == ">=" else value <= bound
    return {"what": what, "value": round(float(value), 4), "bound": f"{sign} {bound:g}", "holds": bool(holds)}


def _levels_in_turn(data, width, seconds, progress):
    from ..models.build import build
    from ..models.quantize import quantize_aware
    from ..spec import ModelSpec, max_level

    options = {"width": width, "input_shape": data.image_shape, "num_classes": data.num_classes}
    steps = {}
    for level in range(max_level(ModelSpec(0, **options)) + 1):
        progress.say(f"preparing level {level}")
        model = build(ModelSpec(level, **options))
        steps["float", level] = _stepper(model, data)
        steps["qat", level] = _stepper(quantize_aware(model), data)
    speeds = {key: [] for key in steps}
    for turn in range(ROUNDS):
        progress.say(f"training every level, round {turn + 1} of {ROUNDS}")
        for key, step in steps.items():
            speeds[key].append(_images_per_second(step, seconds / ROUNDS)[0])
    return {key: float(np.median(values)) for key, values in speeds.items()}


def _stepper(model, data):
    """A function that trains one batch of the data, fetching included, and gives the seconds spent fetching."""
    from .._keras import tf
    from ..recipe import Recipe
    from ..training.loop import batches, compiled_step, make_step

    recipe = Recipe(batch_size=min(BATCH, len(data.train)))
    compiled = compiled_step(make_step(model, recipe), tf.distribute.get_strategy(), recipe.batch_size)

    def endless():
        epoch = 0
        while True:
            yield from batches(data.train, recipe, "float", epoch)
            epoch += 1

    source = endless()

    def step():
        start = time.perf_counter()
        images, labels, seed = next(source)
        fetched = time.perf_counter() - start
        float(compiled(images, labels, 0.01, seed)[0])
        return fetched

    step()  # traces
    step.batch_size = recipe.batch_size
    return step


def _images_per_second(step, seconds):
    """(images/s, share of the time spent waiting for data), over at least one step."""
    start, count, waited = time.perf_counter(), 0, 0.0
    while not count or time.perf_counter() - start < seconds:
        waited += step()
        count += 1
    elapsed = time.perf_counter() - start
    return count * step.batch_size / elapsed, waited / elapsed


def _agreement_rows(run, data_dir):
    from ..data import load_dataset
    from ..models.evaluate import agreement

    name = json.loads((run.folder / "dataset.json").read_text())["name"]
    images = load_dataset(name, input_shape=run.spec.input_shape, data_dir=data_dir).test.images[:1000]
    result = agreement(run.qat_model(), run.int8_model(), images)
    what = f"{run.spec.name}: .tflite against QAT Keras on {result.images} test images, "
    operators_outside = len(run.int8_model().tensor_types - {"int8", "int32"})
    return [
        _row(what + "share of logits within 1 LSB", result.within_1_lsb, ">=", 0.999),
        _row(what + "largest distance in LSB", result.largest_lsb, "<=", 3),
        _row(what + "top-1 agreement", result.top1, ">=", 0.995),
        _row(what + "tensor types other than int8 and int32", operators_outside, "<=", 0),
    ]


def _worker(job: dict) -> dict:
    """Do a job in a fresh process and give what it printed last."""
    job = {key: str(value) if isinstance(value, Path) else value for key, value in job.items()}
    command = [sys.executable, "-m", "factorizenet_tf.benchmarks.benchmark", json.dumps(job)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    if result.returncode:
        raise RuntimeError(f"the measurement {job['job']!r} failed: {result.stderr.strip().splitlines()[-1:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def _work_analysis(data, model) -> dict:
    from ..analysis.analyze import CALIBRATION_IMAGES, analyze
    from ..data import Split

    split = Split(data.train.images[:SENSITIVITY_IMAGES], data.train.labels[:SENSITIVITY_IMAGES])
    calibration = data.calibration(CALIBRATION_IMAGES)
    seconds = []
    for sensitivity in (False, True):
        start = time.perf_counter()
        analyze(model, calibration=calibration, evaluation=split, sensitivity=sensitivity)
        seconds.append(time.perf_counter() - start)
    return {
        "calibration": len(calibration),
        "images": len(split),
        "seconds": seconds[0],
        "sensitivity_seconds": max(0.0, seconds[1] - seconds[0]),
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _work(job: dict) -> dict:
    from .._keras import keras
    from ..data import load_dataset
    from ..models.build import build
    from ..models.evaluate import accuracy
    from ..spec import ModelSpec

    data = load_dataset(job["dataset"], data_dir=job["data_dir"])
    level = job.get("level", 2)
    model = build(ModelSpec(level, width=job["width"], input_shape=data.image_shape, num_classes=data.num_classes))
    if job["job"] == "analysis":
        return _work_analysis(data, model)
    if job["job"] == "stock":
        # A clone from the config has tf_keras's own path again.
        step = _stepper(keras.models.clone_model(model), data)
        return {"images_per_second": _images_per_second(step, 5)[0]}
    _, waiting = _images_per_second(_stepper(model, data), job["seconds"])
    accuracy(model, data.test)
    return {"waiting": waiting, "peak_bytes": _peak_bytes()}


if __name__ == "__main__":
    print(json.dumps(_work(json.loads(sys.argv[1]))))
