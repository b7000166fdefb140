"""What the tests of serving share: one server in a process of its own, and two exported versions."""

import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import requests

from factorizenet_tf.serving.saved_model import export

PATIENCE = 60  # seconds for a server to start or stop on a busy machine
PUBLISHED = "fnet-l2-int8"


@pytest.fixture(scope="session")
def start_server():
    """Starts `factorizenet serve` on a free port; gives its process, address and the first model's name."""

    def start(*arguments):
        command = [sys.executable, "-m", "factorizenet_tf.cli", "serve", *map(str, arguments), "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = process.stdout.readline()
        match = re.match(r"(http://127\.0\.0\.1:(\d+))/v1/models/([^:]+): int8 LiteRT, \d+ classes", line)
        if match is None:
            process.kill()
            raise AssertionError(f"the server said {line!r}")
        return SimpleNamespace(process=process, url=match[1], port=int(match[2]), model=match[3])

    return start


@pytest.fixture(scope="session")
def stop_server():
    """Sends a server a signal and gives its exit code."""

    def stop(server, number=signal.SIGTERM):
        server.process.send_signal(number)
        code = server.process.wait(PATIENCE)
        server.process.stdout.close()
        return code

    return stop


@pytest.fixture(scope="session")
def server(run, start_server, stop_server):
    """The session's server: the run's net under its own name, again as `second`, and a published one."""
    server = start_server(run.folder, f"second={run.folder / 'model.tflite'}", PUBLISHED, "--max-bytes", 300_000)
    yield server
    assert stop_server(server) == 0


@pytest.fixture(scope="session")
def post(server):
    """Asks the session's server to predict; gives the answer."""

    def post(body, model=None, **options):
        path = f"{server.url}/v1/models/{model or server.model}:predict"
        return requests.post(path, timeout=30, **({"json": body} if not options else {"data": body} | options))

    return post


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serving") / "models"


@pytest.fixture(scope="session")
def int8(run, folder):
    return export(run.folder, folder)


@pytest.fixture(scope="session")
def floating(run, folder, int8):
    return export(run.folder, folder, precision="float", version=3)


@pytest.fixture(scope="session")
def loaded(int8, floating):
    """Signatures of both versions as TensorFlow Serving loads them, by precision."""
    import tensorflow as tf

    return {one.precision: tf.saved_model.load(str(one.folder), tags=["serve"]).signatures for one in (int8, floating)}
