"""How fast the zoo lists, loads and verifies, each time against the bound that the package keeps to."""

from __future__ import annotations

import json
import subprocess
import sys
import time

__all__ = ["measure_zoo"]

LISTING = """
import json, sys, time
import factorizenet_tf as fnet
from factorizenet_tf import zoo
times = []
for call in (zoo.names, zoo.list):
    start = time.perf_counter()
    call(zoo_dir=sys.argv[1] or None)
    times.append(time.perf_counter() - start)
start = time.perf_counter()
net = zoo.load(sys.argv[2], "tflite", zoo_dir=sys.argv[1] or None)
times.append(time.perf_counter() - start)
print(json.dumps([times, "tensorflow" in sys.modules]))
"""
BUILDING = """
import json, sys, time
from factorizenet_tf._keras import tf
from factorizenet_tf import zoo
import tensorflow_model_optimization
start = time.perf_counter()
zoo.load(sys.argv[2], zoo_dir=sys.argv[1] or None)
print(json.dumps(time.perf_counter() - start))
"""


def measure_zoo(*, zoo_dir=None, data_dir=None, verbose: bool = True) -> list[dict]:
    """Time the first call of each in fresh processes, then the verification of all int8 models.

    Args:
        zoo_dir: None, a folder or an address, as for `zoo.load`.
        data_dir: where TFDS keeps its data; verification measures accuracy where it is there.
        verbose: say what is measured.

    Returns:
        One dict a figure: what, value (seconds), bound, holds.
    """
    from .. import zoo as models
    from ..zoo.catalog import verify_all

    names = [card.name for card in models.list(precision="int8", zoo_dir=zoo_dir)]
    if not names:
        return []
    (listed, listed_all, loaded), with_tensorflow = _timed(LISTING, zoo_dir, names[0])
    rows = [
        _row("zoo.names(), first call, s", listed, 0.05),
        _row("zoo.list(), second call, s", listed_all, 0.05),
        _row("zoo.load(format='tflite'), first call, s", loaded, 0.3),
        _row("TensorFlow imported by these", float(with_tensorflow), 0),
        _row(
            "zoo.load(format='keras') of an int8 model, TensorFlow imported, s", _timed(BUILDING, zoo_dir, names[0]), 6
        ),
    ]
    start = time.perf_counter()
    results = verify_all(names, zoo_dir=zoo_dir, data_dir=data_dir, verbose=verbose)
    images = sum("test accuracy" in check.what for result in results for check in result.checks)
    what = f"verification of {len(names)} int8 models, {images} of them on their whole test split, s"
    return [*rows, _row(what, time.perf_counter() - start, 120)]


def _timed(code, zoo_dir, name):
    command = [sys.executable, "-c", code, "" if zoo_dir is None else str(zoo_dir), name]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the measurement failed: {result.stderr.strip().splitlines()[-1:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def _row(what, value, bound):
    return {"what": what, "value": round(float(value), 4), "bound": f"<= {bound:g}", "holds": value <= bound}
