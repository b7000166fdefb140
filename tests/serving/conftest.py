"""What the tests of serving share: a server in a process of its own, and two exported versions."""

import pytest
import requests
from serving_contract import served

from factorizenet_tf.serving.saved_model import export

PUBLISHED = "fnet-l2-int8"


@pytest.fixture(scope="session")
def server(run):
    """The session's server: the run's net under its own name, again as `second`, and a published one."""
    with served(run.folder, f"second={run.folder / 'model.tflite'}", PUBLISHED, "--max-bytes", 300_000) as server:
        yield server


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
