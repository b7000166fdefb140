"""Clients that ask a server as fast as it answers, and a server in a process of its own to ask."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

__all__ = ["Load", "ask", "median_load", "running_server"]

START_SECONDS = 120


@dataclass(frozen=True)
class Load:
    """What clients saw.

    Args:
        clients: that asked at once, each on a connection of its own.
        images: of a request.
        images_per_second: over all clients.
        p50_ms, p99_ms: from asking to having the answer.
        failures: requests without an answer.
    """

    clients: int
    images: int
    images_per_second: float
    p50_ms: float
    p99_ms: float
    failures: int


def ask(url: str, model: str, images: np.ndarray, *, clients: int, seconds: float) -> Load:
    """Have several clients ask a server for a while, each as fast as it is answered."""
    # The body is encoded once and an answer is read but not parsed: the clients share this machine with the server.
    body = json.dumps({"instances": images.tolist()}).encode()
    times, failures, until = [], [], time.perf_counter() + seconds

    def work():
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        while time.perf_counter() < until:
            start = time.perf_counter()
            try:
                connection.request("POST", f"/v1/models/{model}:predict", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise OSError(content[:200].decode(errors="replace"))
                times.append(1e3 * (time.perf_counter() - start))
            except (OSError, http.client.HTTPException) as error:
                failures.append(error)
                connection.close()
        connection.close()

    start = time.perf_counter()
    workers = [threading.Thread(target=work) for _ in range(clients)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if not times:
        raise RuntimeError(f"no request of {len(failures)} was answered: {failures[0]}")
    p50, p99 = np.percentile(times, (50, 99))
    rate = len(times) * len(images) / (time.perf_counter() - start)
    return Load(clients, len(images), rate, float(p50), float(p99), len(failures))


@contextlib.contextmanager
def running_server(sources):
    """`factorizenet serve` in a process of its own on a free port; gives its address once every model is available."""
    from ..serving.client import Client

    command = [sys.executable, "-m", "factorizenet_tf.cli", "serve", *map(str, sources), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors: list[str] = []
    reader = threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        first = process.stdout.readline()
        found = re.match(r"(http://\S+)/v1/models/([^:/]+): ", first)
        if found is None:
            process.wait(START_SECONDS)
            raise RuntimeError(f"the server did not start: {(errors or ['it said nothing'])[-1].strip()}")
        Client(found[1], found[2]).wait_until_ready(START_SECONDS)
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
        process.stdout.close()
        process.stderr.close()


def median_load(loads) -> Load:
    """Medians over rounds, failures summed."""
    rate, p50, p99 = (
        float(np.median([getattr(load, name) for load in loads])) for name in ("images_per_second", "p50_ms", "p99_ms")
    )
    return Load(loads[0].clients, loads[0].images, rate, p50, p99, sum(load.failures for load in loads))
