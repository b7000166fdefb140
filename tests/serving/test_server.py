import asyncio
import base64
import contextlib
import importlib
import json
import re
import signal
import socket
import sys
import time
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from serving_contract import check_contract, encoded, served

import factorizenet_tf as fnet
from factorizenet_tf.serving import server as serving_server
from factorizenet_tf.serving.classifier import load_classifiers

ONE = np.zeros((1, 16, 16, 1), int).tolist()


def in_base64(content):
    return {"b64": base64.b64encode(content).decode()}


class RefusedError(Exception):
    pass


@pytest.fixture
def ask(post):
    def ask(signature, values):
        rows = values.tolist() if isinstance(values, np.ndarray) else list(map(in_base64, values))
        answer = post({"signature_name": signature, "instances": rows})
        if answer.status_code == 400:
            raise RefusedError(answer.json()["error"])
        columns = answer.json()["predictions"]
        return {name: np.array([row[name] for row in columns]) for name in columns[0]}

    return ask


# What it answers


def test_the_contract_is_kept_with_the_int8_nets_numbers(ask, models, digits):
    images = digits.test.images[:16]
    logits = check_contract(ask, images, RefusedError)
    np.testing.assert_allclose(logits, models.int8.predict(images), rtol=1e-5)


def test_columns_and_wrapped_rows_are_taken_too(post, digits):
    image = digits.test.images[0]
    (expected,) = post({"instances": [image.tolist()]}).json()["predictions"]
    file = in_base64(encoded(image))
    for body in (
        {"inputs": [image.tolist()]},
        {"inputs": {"image": [image.tolist()]}},
        {"inputs": {"image_bytes": [file]}, "signature_name": "serving_bytes"},
    ):
        assert post(body).json()["outputs"] == {name: [value] for name, value in expected.items()}
    for row, signature in (({"image": image.tolist()}, ""), ({"image_bytes": file}, "serving_bytes")):
        assert post({"instances": [row], "signature_name": signature}).json() == {"predictions": [expected]}


def test_clients_at_once_get_each_their_own_answer(ask, models, digits):
    images = digits.test.images[:32]
    with futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda image: ask("serving_default", image[None])["logits"][0], images))
    np.testing.assert_allclose(answers, models.int8.predict(images), rtol=1e-5)


def test_status_health_and_what_is_not_there_are_said(server):
    def get(path):
        answer = requests.get(server.url + path, timeout=9)
        return answer.status_code, answer.json()

    net, names = f"/v1/models/{server.model}", f"{server.model}, second, fnet-l2-int8"
    fine = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in (net, f"{net}/versions/1"):
        assert get(path) == (200, {"model_version_status": [fine]})
        code, answer = get(f"{path}:predict")
        assert (code, answer["error"][:39]) == (405, "a GET predicts nothing; send a POST wit")
    assert get("/healthz") == (200, {"status": "ok"})
    for path in ("", "/metadata", ":predict"):
        assert get(f"/v1/models/other{path}") == (404, {"error": f"no model 'other'; there are {names}"})
    assert get(f"{net}/versions/2") == (404, {"error": f"{server.model} has no version 2; it has 1"})
    assert get("/docs") == (404, {"error": "Not Found"})
    for place in ("other", f"{server.model}/versions/2"):
        assert requests.post(f"{server.url}/v1/models/{place}:predict", json={"instances": ONE}).status_code == 404


def test_the_metadata_is_the_saved_models_own(server, loaded):
    answer = requests.get(f"{server.url}/v1/models/{server.model}/metadata", timeout=9).json()
    assert answer["model_spec"] == {"name": server.model, "signature_name": "", "version": "1"}
    described = answer["metadata"]["signature_def"]["signature_def"]
    assert set(described) == set(loaded["int8"]) == {"serving_default", "serving_bytes"}
    kinds = {"DT_FLOAT": "float32", "DT_INT64": "int64", "DT_STRING": "string", "DT_UINT8": "uint8"}

    def shown(tensors):
        sizes = {name: [int(size["size"]) for size in t["tensor_shape"]["dim"]] for name, t in tensors.items()}
        return {name: (kinds[tensor["dtype"]], sizes[name]) for name, tensor in tensors.items()}

    def own(specs):
        return {name: (spec.dtype.name, [-1 if n is None else n for n in spec.shape]) for name, spec in specs.items()}

    for name, signature in loaded["int8"].items():
        assert shown(described[name]["inputs"]) == own(signature.structured_input_signature[1])
        assert shown(described[name]["outputs"]) == own(signature.structured_outputs)


# What it refuses


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], 'either "instances"'),
        ({"instances": ONE, "inputs": ONE}, 'either "instances"'),
        ({"instances": "x"}, "has no images; give a list of 1 to 64"),
        ({"instances": ONE * 65}, "has 65 images; give a list of 1 to 64"),
        ({"instances": [[[0, 1], [2, 3]]]}, r"shape \(1, 2, 2\), integers; they must be integers 0..255 of .*\(n, 16"),
        ({"instances": [[1, [2]]]}, "not all integers"),
        ({"instances": (np.zeros((1, 16, 16, 1)) + 0.5).tolist()}, "fractions"),
        ({"instances": (np.zeros((1, 16, 16, 1), int) + 256).tolist()}, "pixels of 256 to 256"),
        ({"instances": [{"b64": "aGVsbG8="}]}, 'files in b64 give "signature_name": "serving_bytes"'),
        ({"instances": ONE, "signature_name": "other"}, "no signature 'other'"),
        ({"instances": ONE, "signature_name": "serving_bytes"}, "takes image files, each as"),
        ({"instances": [{"b64": "%%"}], "signature_name": "serving_bytes"}, "base64 is damaged"),
        ({"instances": [{"b64": "aGVsbG8="}], "signature_name": "serving_bytes"}, "of 5 bytes is broken or no PNG"),
    ],
)
def test_a_request_that_is_wrong_is_a_400_that_says_why(body, message, post):
    answer = post(body)
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"])


def test_what_is_no_json_is_a_400_and_its_content_type_does_not_matter(post):
    for body in (b"", b"{", b"\xff\xfe", b"null", b"[" * 20_000, b'{"instances": [' + b"[" * 5_000):
        answer = post(body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, body[:10]
        assert answer.json()["error"]
    assert post(json.dumps({"instances": ONE}), headers={"Content-Type": "text/plain"}).status_code == 200


def test_a_request_of_too_many_bytes_is_a_413_whether_it_says_so_or_not(post):
    for body in (b'{"instances": "' + b"x" * 400_000 + b'"}', iter([b"x" * 100_000] * 4)):
        answer = post(body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"] == "a request of more than 300,000 bytes; send fewer images"


def asked_in_process(app, name, receive):
    """Ask an app to predict without a server; gives its status and its error."""
    sent = []
    scope = {"type": "http", "method": "POST", "path": f"/v1/models/{name}:predict", "headers": [], "query_string": b""}

    async def send(message):
        sent.append(message)

    with contextlib.suppress(AttributeError):  # a fault is raised once more, for uvicorn's log
        asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


def test_a_body_that_does_not_come_is_a_408_and_a_fault_of_the_servers_own_a_500(models, monkeypatch):
    async def receive():
        return {"type": "http.request", "body": json.dumps({"instances": ONE}).encode(), "more_body": False}

    monkeypatch.setattr(serving_server, "BODY_SECONDS", 0.05)
    app = serving_server.make_app({"net": SimpleNamespace(model=models.int8)})  # which cannot classify
    answer = asked_in_process(app, "net", lambda: asyncio.sleep(60))
    assert answer == (408, "the request was not whole after 0.05 s; send fewer images")
    assert asked_in_process(app, "net", receive) == (500, "the server failed; its own output has the details")


def test_headers_that_are_too_long_are_a_400_and_one_connection_too_many_a_503(server):
    def health():
        return requests.get(f"{server.url}/healthz", timeout=9).status_code

    def connection():
        return socket.create_connection(("127.0.0.1", server.port), timeout=20)

    with connection() as one:
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000)
        assert one.recv(12) == b"HTTP/1.1 400"
    until = time.monotonic() + 20
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(connection())
        while (code := health()) == 200 and time.monotonic() < until:
            time.sleep(0.05)  # until the last one is accepted
    assert code == 503
    while health() != 200 and time.monotonic() < until:
        time.sleep(0.05)
    assert time.monotonic() < until


# How it starts and ends


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="no /proc to see a process's libraries in")
def test_it_runs_without_tensorflow_and_on_this_machine_alone(server):
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "ai_edge_litert" in mapped
    assert "libtensorflow_framework" not in mapped
    assert f"0100007F:{server.port:04X}" in Path("/proc/net/tcp").read_text()


def test_it_finishes_a_running_request_on_ctrl_c(run):
    body = json.dumps({"instances": ONE}).encode()
    with served(run.folder) as server, socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        head = f"POST /v1/models/{server.model}:predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        connection.sendall(body[10:])
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        assert server.process.wait(20) == 0
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"predictions" in answer


def test_an_address_or_number_that_cannot_be_is_one_line(run, server, fails):
    for options, code, message in (
        (("--host", "203.0.113.1"), 1, "cannot listen on 203.0.113.1:8501"),
        (("--port", server.port), 1, f"cannot listen on 127.0.0.1:{server.port} (Address already in use); choose"),
        (("--port", 65536), 2, "--port is 65536; it must be from 1 to 65535"),
        (("--max-bytes", 0), 2, "--max-bytes is 0; it must be at least 1"),
        (("--threads", 0), 2, "--threads is 0; it must be"),
    ):
        assert fails("serve", run.folder, *options, code=code).startswith(f"error: {message}")


def test_an_ipv6_address_is_said_in_brackets(run):
    said = []

    def say(classifiers, url):
        said.append(url)
        raise KeyboardInterrupt

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with pytest.raises(KeyboardInterrupt):
        fnet.serving.serve([run.folder], host="::1", port=0, started=say)
    assert re.fullmatch(r"http://\[::1\]:\d+", said[0])


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "factorizenet_tf.serving.server")
    with pytest.raises(ModuleNotFoundError, match=r"the server needs uvicorn: pip install 'factorizenet_tf\[serve\]'"):
        importlib.import_module("factorizenet_tf.serving.server")


def test_sources_that_cannot_be_served_are_refused(run, tmp_path):
    folder = run.folder
    for sources, message in (
        ([], "nothing to serve"),
        ([f"a={folder}", folder / "model.tflite", f"a={folder}"], "two models are called .*; name one otherwise: oth"),
        ([f"a b={folder}"], "cannot be served; use letters"),
        ([tmp_path / "lr=0.1"], r"no model at .*lr=0\.1"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_classifiers(sources)
