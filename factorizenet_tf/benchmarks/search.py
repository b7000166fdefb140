"""How long a search takes besides training: to start, and to propose a net out of ten thousand."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import tempfile
import time

from ..console import Progress
from ..spec import DEFAULT_STAGES, ModelSpec

__all__ = ["measure_search"]

STAGES = ((1, 1), *DEFAULT_STAGES)
WIDTHS = (8, 16, 24, 32, 40, 48)
STARTING = """
import sys
import factorizenet_tf as fnet
data = fnet.load_dataset("digits", input_shape=(16, 16, 1))
oracle = fnet.tuner.FactorizationOracle(fnet.ModelSpec(0, input_shape=data.image_shape), max_macs=2_000_000)
tuner = fnet.tuner.FactorizationTuner(oracle, data, directory=sys.argv[1])
assert tuner.oracle.create_trial("tuner0").status == "RUNNING"
"""


def measure_search(*, widths: tuple[int, ...] = WIDTHS, verbose: bool = True) -> list[dict]:
    """Time a search's start in a fresh process, and each proposal of a walk with a formula for a training.

    Args:
        widths: of the nets walked over; the default makes more than 10,000.
        verbose: say what is measured.

    Returns:
        One dict a figure: what, value, bound, holds. A proposal's time is CPU time, its two files' writing included.
    """
    with Progress(verbose) as progress:
        progress.say("a search's start, in a process of its own")
        start, before = time.perf_counter(), _children_seconds()
        _start()
        seconds, cpu_seconds = time.perf_counter() - start, _children_seconds() - before
        progress.say("a walk's proposals")
        nets, times = _proposals(widths)
    slowest, mean = 1000 * max(times), 1000 * sum(times) / len(times)
    over = f"{nets:,} nets, {len(times)} proposals"
    return [
        _row("a search's start to its first proposal, TensorFlow included, s", seconds, 10),
        _row("of that CPU s, which a busy machine does not change", cpu_seconds, 10),
        _row(f"{over}: CPU ms of one, mean", mean, 20),
        _row(f"{over}: CPU ms of the slowest", slowest, 20),
    ]


def _children_seconds():
    """CPU seconds of the processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _start():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", STARTING, folder], check=True, capture_output=True)


def _row(what, value, bound):
    return {"what": what, "value": round(value, 3), "bound": f"<= {bound}", "holds": value <= bound}


def _proposals(widths):
    """(nets in the space, CPU seconds of each proposal) of a whole walk under a budget."""
    from ..tuner.oracle import FactorizationOracle
    from ..tuner.space import macs

    oracle = FactorizationOracle(ModelSpec(0, stages=STAGES), max_macs=20_000_000, widths=widths)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        oracle._set_project_dir(folder, "walk")
        while True:
            start = time.thread_time()
            trial = oracle.create_trial("tuner0")
            times.append(time.thread_time() - start)
            if trial.status != "RUNNING":
                return sum(1 for _ in oracle.space.nets()), times
            accuracy = 0.5 + 0.02 * math.log(macs(oracle.net(trial)))
            oracle.update_trial(trial.trial_id, {oracle.objective.name: accuracy})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)
