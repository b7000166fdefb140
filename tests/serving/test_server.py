import asyncio
import base64
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from serving_contract import check_contract, encoded

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.serving import server as serving_server
from factorizenet_tf.serving.classifier import load_classifiers

ONE = np.zeros((1, 16, 16, 1), int).tolist()


class RefusedError(Exception):
    pass


@pytest.fixture
def ask(post):
    def ask(signature, values, model=None):
        if isinstance(values, np.ndarray):
            rows = values.tolist()
        else:
            rows = [{"b64": base64.b64encode(content).decode()} for content in values]
        answer = post({"signature_name": signature, "instances": rows}, model)
        if answer.status_code == 400:
            raise RefusedError(answer.json()["error"])
        columns = answer.json()["predictions"]
        return {name: np.array([row[name] for row in columns]) for name in columns[0]}

    return ask


def half_a_request(server, body):
    head = f"POST /v1/models/{server.model}:predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
    return connection


def received(connection):
    with connection:
        return b"".join(iter(lambda: connection.recv(65_536), b"")).decode(errors="replace")


# What it answers


def test_the_contract_is_kept_with_the_int8_nets_numbers(ask, models, digits):
    images = digits.test.images[:16]
    logits = check_contract(ask, images, RefusedError)
    np.testing.assert_allclose(logits, models.int8.predict(images), rtol=1e-5)


def test_columns_and_wrapped_rows_are_taken_too(post, digits):
    image = digits.test.images[0]
    (expected,) = post({"instances": [image.tolist()]}).json()["predictions"]
    file = {"b64": base64.b64encode(encoded(image)).decode()}
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


def test_status_and_health_are_said(server):
    fine = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("", "/versions/1"):
        answer = requests.get(f"{server.url}/v1/models/{server.model}{path}", timeout=9)
        assert answer.json() == {"model_version_status": [fine]}
    assert requests.get(f"{server.url}/healthz", timeout=9).json() == {"status": "ok"}


def test_the_metadata_is_the_saved_models_own(server, loaded):
    answer = requests.get(f"{server.url}/v1/models/{server.model}/metadata", timeout=9).json()
    assert answer["model_spec"] == {"name": server.model, "signature_name": "", "version": "1"}
    described = answer["metadata"]["signature_def"]["signature_def"]
    assert set(described) == set(loaded["int8"]) == {"serving_default", "serving_bytes"}
    named = {"DT_FLOAT": "float32", "DT_INT64": "int64", "DT_STRING": "string", "DT_UINT8": "uint8"}
    for name, signature in loaded["int8"].items():
        for side, specs in (
            ("inputs", signature.structured_input_signature[1]),
            ("outputs", signature.structured_outputs),
        ):
            shapes = {
                key: (named[value["dtype"]], [int(size["size"]) for size in value["tensor_shape"]["dim"]])
                for key, value in described[name][side].items()
            }
            sizes = {key: [-1 if size is None else size for size in spec.shape] for key, spec in specs.items()}
            assert shapes == {key: (spec.dtype.name, sizes[key]) for key, spec in specs.items()}


def test_what_is_not_there_is_a_404_that_says_what_is(server):
    names = f"{server.model}, second, fnet-l2-int8"
    for path, message in (
        ("/v1/models/other", f"no model 'other'; there are {names}"),
        ("/v1/models/other/metadata", f"no model 'other'; there are {names}"),
        (f"/v1/models/{server.model}/versions/2", f"{server.model} has no version 2; it has 1"),
        ("/v1/other", "Not Found"),
    ):
        answer = requests.get(server.url + path, timeout=9)
        assert (answer.status_code, answer.json()) == (404, {"error": message})
    for place in ("other", f"{server.model}/versions/2"):
        answer = requests.post(f"{server.url}/v1/models/{place}:predict", json={"instances": ONE}, timeout=9)
        assert answer.status_code == 404
    assert requests.get(f"{server.url}/docs", timeout=9).status_code == 404


# What it refuses


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], 'either "instances"'),
        ({}, 'either "instances"'),
        ({"instances": ONE, "inputs": ONE}, 'either "instances"'),
        ({"instances": []}, "has no images; give a list of 1 to 64"),
        ({"instances": "x"}, "has no images"),
        ({"instances": None}, "has no images"),
        ({"instances": ONE * 65}, "has 65 images; give a list of 1 to 64"),
        ({"instances": [[[0, 1], [2, 3]]]}, r"shape \(1, 2, 2\), integers; they must be integers 0..255 of .*\(n, 16"),
        ({"instances": [[1, [2]]]}, "not all integers"),
        ({"instances": (np.zeros((1, 16, 16, 1)) + 0.5).tolist()}, "fractions"),
        ({"instances": (np.zeros((1, 16, 16, 1), int) + 256).tolist()}, "pixels of 256 to 256"),
        ({"instances": (np.zeros((1, 16, 16, 1), int) - 1).tolist()}, "pixels of -1 to -1"),
        ({"instances": [[[[True]] * 16] * 16]}, "not all integers"),
        ({"instances": [[[["a"]] * 16] * 16]}, "not all integers"),
        ({"instances": [{"picture": 1}]}, "not all integers"),
        ({"instances": [{"b64": "aGVsbG8="}]}, 'files in b64 give "signature_name": "serving_bytes"'),
        ({"instances": ONE, "signature_name": "other"}, "no signature 'other'"),
        ({"instances": ONE, "signature_name": 3}, "no signature 3"),
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


def test_a_body_that_does_not_come_is_a_408(run, monkeypatch):
    monkeypatch.setattr(serving_server, "BODY_SECONDS", 0.05)
    app = serving_server.make_app(load_classifiers([f"net={run.folder}"]))
    answer = asked_in_process(app, "net", lambda: asyncio.sleep(60))
    assert answer == (408, "the request was not whole after 0.05 s")


def test_a_fault_of_the_servers_own_is_a_500_in_its_form(run):
    async def receive():
        return {"type": "http.request", "body": json.dumps({"instances": ONE}).encode(), "more_body": False}

    (classifier,) = load_classifiers([run.folder]).values()
    app = serving_server.make_app({"net": SimpleNamespace(model=classifier.model)})  # which cannot classify
    assert asked_in_process(app, "net", receive) == (500, "the server failed; its output says where")


def test_headers_that_are_too_long_are_a_400_and_one_connection_too_many_a_503(server):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000)
    assert received(connection).startswith("HTTP/1.1 400")
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(64)]
    until = time.monotonic() + 20
    while (code := requests.get(f"{server.url}/healthz", timeout=9).status_code) == 200 and time.monotonic() < until:
        time.sleep(0.05)  # until the last one is accepted
    for one in idle:
        one.close()
    assert code == 503
    while requests.get(f"{server.url}/healthz", timeout=9).status_code != 200 and time.monotonic() < until:
        time.sleep(0.05)
    assert time.monotonic() < until


# How it starts and ends


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="no /proc to see a process's libraries in")
def test_it_runs_without_tensorflow_and_on_this_machine_alone(server):
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "ai_edge_litert" in mapped
    assert "libtensorflow_framework" not in mapped
    loopback = f"0100007F:{server.port:04X}"
    assert [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if loopback in line]


def test_it_finishes_a_running_request_on_ctrl_c(run, start_server, stop_server):
    server = start_server(run.folder)
    body = json.dumps({"instances": ONE}).encode()
    connection = half_a_request(server, body)
    time.sleep(0.5)
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    connection.sendall(body[10:])
    answer = received(connection)
    assert answer.startswith("HTTP/1.1 200")
    assert "predictions" in answer
    assert stop_server(server, 0) == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--host", "203.0.113.1"], 1, "cannot listen on 203.0.113.1:8501"),
        (["--port", "-1"], 2, "port is -1; it must be from 1 to 65535"),
        (["--port", "65536"], 2, "port is 65536; it must be"),
        (["--max-bytes", "0"], 2, "max_bytes is 0; it must be at least 1"),
        (["--threads", "0"], 2, "threads is 0; it must be"),
    ],
)
def test_an_address_or_number_that_cannot_be_is_one_line(options, code, message, run, capsys):
    assert main(["serve", str(run.folder), *options]) == code
    assert f"error: {message}" in capsys.readouterr().err


def test_a_port_in_use_is_one_line(run, server, capsys):
    assert main(["serve", str(run.folder), "--port", str(server.port)]) == 1
    message = capsys.readouterr().err
    assert f"error: cannot listen on 127.0.0.1:{server.port}" in message
    assert "(Address already in use)" in message
    assert "another port with --port" in message


def test_an_ipv6_address_is_said_in_brackets(run):
    class SaidError(Exception):
        pass

    def say(classifiers, url):
        raise SaidError(url)

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with pytest.raises(SaidError, match=r"http://\[::1\]:\d+$"):
        fnet.serving.serve([run.folder], host="::1", port=0, started=say)


def test_a_missing_package_is_named_with_its_extra():
    code = "import sys; sys.modules['uvicorn'] = None; import factorizenet_tf.serving.server"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the server needs uvicorn: pip install 'factorizenet_tf[serve]'" in result.stderr


def test_sources_that_cannot_be_served_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="nothing to serve"):
        load_classifiers([])
    with pytest.raises(ValueError, match=r"two models are called .*; name one otherwise: other="):
        load_classifiers([run.folder, run.folder / "model.tflite", run.folder])
    with pytest.raises(ValueError, match="cannot be served; use letters"):
        load_classifiers([f"a b={run.folder}"])
    for missing in (tmp_path / "none", tmp_path / "lr=0.1"):
        with pytest.raises(FileNotFoundError, match=missing.name):
            load_classifiers([missing])


def test_an_equals_sign_renames_unless_it_is_a_paths_own(run, tmp_path, monkeypatch):
    (tmp_path / "lr=0.1").symlink_to(run.folder)
    monkeypatch.chdir(tmp_path)
    name = f"{run.spec.name}-int8"
    for source, expected in (
        ("lr=0.1", name),
        (tmp_path / "lr=0.1", name),
        ("b=lr=0.1", "b"),
        (f"b={run.folder}", "b"),
    ):
        assert list(load_classifiers([source])) == [expected]
