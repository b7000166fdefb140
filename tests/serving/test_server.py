import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from grpc_services import grpc_services
from PIL import Image
from serving_contract import check_contract

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.serving.client import Client, ServingError
from factorizenet_tf.serving.saved_model import export
from factorizenet_tf.serving.server_nets import all_nets, read_image
from factorizenet_tf.serving.server_protocol import images_of

pytest.importorskip("kserve", reason="the extra serve is not installed")

PATIENCE = 60  # seconds for a server to start on a busy machine


def started(*arguments):
    """A server in a process of its own on a free port; its address once it answers."""
    command = [sys.executable, "-m", "factorizenet_tf.cli", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = process.stdout.readline()
    found = re.match(r"(http://127\.0\.0\.1:(\d+))/v1/models/([^:]+): ", line)
    if found is None:
        process.kill()
        raise AssertionError(f"the server said {line!r}")
    server = SimpleNamespace(process=process, url=found[1], port=int(found[2]), model=found[3])
    Client(server.url, server.model).wait_until_ready(PATIENCE)
    return server


def stopped(server):
    server.process.terminate()
    code = server.process.wait(PATIENCE)
    server.process.stdout.close()
    return code


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export(run.folder, tmp_path_factory.mktemp("served"), precision="float", version=7)


@pytest.fixture(scope="module")
def server(run, exported):
    server = started(run.folder, f"floating={exported.folder}", "--max-images", 16, "--max-bytes", 300_000)
    yield server
    stopped(server)


@pytest.fixture
def impatient(run):
    """A server that takes one request at once and waits for its rest for a second."""
    server = started(run.folder, "--max-requests", 1, "--request-seconds", 1)
    yield server
    stopped(server)


@pytest.fixture
def client(server):
    with Client(server.url, server.model) as client:
        yield client


def png(image):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    return file.getvalue()


def post(server, body, path=None, **options):
    path = path or f"/v1/models/{server.model}:predict"
    return requests.post(server.url + path, timeout=30, **({"json": body} if not options else {"data": body} | options))


# What it answers


def test_predictions_are_the_int8_nets(client, models, digits):
    images = digits.test.images[:16]
    found = client.predict(images)
    expected = models.int8.predict(images)
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-5)
    np.testing.assert_array_equal(found["class_id"], expected.argmax(1))
    assert found["class_name"].tolist() == [digits.class_names[i] for i in expected.argmax(1)]
    np.testing.assert_allclose(found["probabilities"].sum(1), 1, atol=1e-5)
    assert (np.diff(found["probabilities"], axis=1) > 0).tolist() == (np.diff(found["logits"], axis=1) > 0).tolist()


def test_the_contract_with_tensorflow_serving_is_kept(server, exported):
    check_contract(server.model, server.url)
    with grpc_services(exported.folder, "floating") as services:
        check_contract("floating", server.url, services.url)


def test_files_are_decoded_and_resized_as_arrays_are(client, digits):
    images = digits.test.images[:4]
    expected = client.predict(images)["logits"]
    np.testing.assert_array_equal(client.predict_files([png(image) for image in images])["logits"], expected)
    wide = np.kron(images[0], np.ones((3, 3, 1), np.uint8))
    one = client.predict_files([png(wide)])
    assert one["class_id"][0] == expected[0].argmax()


def test_columns_and_wrapped_rows_are_taken_too(server, client, digits):
    image = digits.test.images[:2]
    expected = client.predict(image)["logits"]
    for body in (
        {"inputs": image.tolist()},
        {"inputs": {"image": image.tolist()}},
        {"inputs": {"image_bytes": [{"b64": base64.b64encode(png(i)).decode()} for i in image]}}
        | {"signature_name": "serving_bytes"},
    ):
        outputs = post(server, body).json()["outputs"]
        np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-5)
        assert set(outputs) == {"logits", "probabilities", "class_id", "class_name"}
    rows = post(server, {"instances": [{"image": one.tolist()} for one in image]}).json()["predictions"]
    np.testing.assert_allclose([row["logits"] for row in rows], expected, rtol=1e-5)


def test_a_saved_model_is_served_beside_it_at_its_version(server, models, digits):
    images = digits.test.images[:4]
    expected = models.float(images / np.float32(255), training=False)
    for options in ({}, {"version": 7}, {"label": "stable"}):
        with Client(server.url, "floating", **options) as client:
            np.testing.assert_allclose(client.predict(images)["logits"], expected, atol=1e-4)
            assert [version["version"] for version in client.status()] == ["7"]


def test_tensorflow_servings_routes_answer_in_its_form(server, client):
    fine = {"error_code": "OK", "error_message": ""}
    assert client.status() == [{"version": "1", "state": "AVAILABLE", "status": fine}]
    signatures = client.metadata()["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "serving_bytes"}
    image = signatures["serving_default"]["inputs"]["image"]
    sizes = [d["size"] for d in image["tensor_shape"]["dim"]]
    assert (image["dtype"], sizes) == ("DT_UINT8", ["-1", "16", "16", "1"])
    for path in ("/versions/1", "/labels/stable", ""):
        assert requests.get(f"{server.url}/v1/models/{server.model}{path}", timeout=9).status_code == 200
        answer = requests.get(f"{server.url}/v1/models/{server.model}{path}/metadata", timeout=9).json()
        assert answer["model_spec"] == {"name": server.model, "signature_name": "", "version": "1"}


def test_the_metadata_is_the_saved_models_own(server, exported):
    import tensorflow as tf

    signatures = tf.saved_model.load(str(exported.folder)).signatures
    with Client(server.url, "floating") as client:
        told = client.metadata()["signature_def"]["signature_def"]
    assert set(told) == set(signatures)
    for name, signature in signatures.items():
        (key,), specs = signature.structured_input_signature[1], signature.structured_input_signature[1]
        found = told[name]["inputs"][key]
        shape = [-1 if size is None else size for size in specs[key].shape]
        assert [int(d["size"]) for d in found["tensor_shape"]["dim"]] == shape
        assert found["dtype"] == f"DT_{specs[key].dtype.name.upper()}"
        dtypes = {key: value.dtype.name for key, value in signature.structured_outputs.items()}
        named = {"DT_FLOAT": "float32", "DT_INT64": "int64", "DT_STRING": "string"}
        assert {key: named[value["dtype"]] for key, value in told[name]["outputs"].items()} == dtypes


def test_what_is_not_there_is_a_404_that_says_what_is(server, digits):
    images = digits.test.images[:1]
    for options, message in (
        ({"model": "other"}, f"no model 'other'; there are {server.model}, floating"),
        ({"model": server.model, "version": 2}, "has no version 2; it has 1"),
        ({"model": server.model, "label": "canary"}, "has no label 'canary'; it has stable"),
    ):
        with Client(server.url, **options) as client:
            for call, arguments in ((client.predict, [images]), (client.status, []), (client.metadata, [])):
                with pytest.raises(ServingError, match=re.escape(message)) as caught:
                    call(*arguments)
                assert caught.value.status == 404
    assert requests.get(f"{server.url}/v1/other", timeout=9).status_code == 404


def test_health_and_metrics_count_each_models_requests(server, client, digits):
    def counted():
        text = requests.get(f"{server.url}/metrics", timeout=9).text
        return float(re.search(rf'request_predict_seconds_count{{model_name="{server.model}"}} (\S+)', text)[1])

    client.predict(digits.test.images[:1])
    before = counted()
    client.predict(digits.test.images[:1])
    assert counted() == before + 1
    assert requests.get(f"{server.url}/", timeout=9).json() == {"status": "alive"}
    assert requests.get(f"{server.url}/v2/health/ready", timeout=9).json() == {"ready": True}
    assert "request_predict" in requests.get(f"{server.url}/monitoring/prometheus/metrics", timeout=9).text


# What it refuses


def test_nobody_unloads_a_model_over_the_network(server, client, digits):
    path = f"/v2/repository/models/{server.model}/unload"
    answer = post(server, {}, path)
    assert (answer.status_code, answer.json()["error"][:24]) == (403, "models are not loaded or")
    assert client.predict(digits.test.images[:1])["logits"].shape == (1, 10)


ONE = np.zeros((1, 16, 16, 1), int).tolist()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "no JSON object"),
        ({}, 'either "instances"'),
        ({"instances": ONE, "inputs": ONE}, 'either "instances"'),
        ({"instances": []}, "no images"),
        ({"instances": "x"}, "no images"),
        ({"instances": None}, "no images"),
        ({"instances": ONE * 17}, "17 images in one request; at most 16"),
        (
            {"instances": [[[0, 1], [2, 3]]]},
            r"shape \(1, 2, 2\), integers; they must be integers 0..255 of shape \(n, 16",
        ),
        ({"instances": [[1, [2]]]}, "something else"),
        ({"instances": (np.zeros((1, 16, 16, 1)) + 0.5).tolist()}, "fractions"),
        ({"instances": (np.zeros((1, 16, 16, 1), int) + 256).tolist()}, "pixels of 256 to 256"),
        ({"instances": (np.zeros((1, 16, 16, 1), int) - 1).tolist()}, "pixels of -1 to -1"),
        ({"instances": [[[[True]] * 16] * 16]}, "something else"),
        ({"instances": [[[["a"]] * 16] * 16]}, "something else"),
        ({"instances": [{"picture": 1}]}, "something else"),
        ({"instances": ONE, "signature_name": "other"}, "no signature 'other'"),
        ({"instances": ONE, "signature_name": 3}, "no signature 3"),
        ({"instances": ["x"], "signature_name": "serving_bytes"}, "an image file is sent as"),
        ({"instances": [{"b64": "%%"}], "signature_name": "serving_bytes"}, "base64 is damaged"),
        ({"instances": [{"b64": "aGVsbG8="}], "signature_name": "serving_bytes"}, "no PNG or JPEG image"),
    ],
)
def test_a_request_that_is_wrong_is_a_400_that_says_why(server, body, message):
    answer = post(server, body)
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"])


def test_what_is_no_json_is_a_400(server):
    for body in (b"", b"{", b"\xff\xfe", b"null", b"[" * 20_000, b'{"instances": [' + b"[" * 5_000):
        for kind in ("application/json", "text/plain"):
            answer = post(server, body, headers={"Content-Type": kind})
            assert answer.status_code == 400, (body[:10], kind)
            assert answer.json()["error"]


def test_json_of_another_content_type_is_read(server):
    body = json.dumps({"instances": ONE}).encode()
    assert post(server, body, headers={"Content-Type": "application/json; charset=utf-8"}).status_code == 200


def test_a_request_of_too_many_bytes_is_a_413_whether_it_says_so_or_not(server):
    body = b'{"instances": "' + b"x" * 400_000 + b'"}'
    answer = post(server, body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (413, "a request of 400,017 bytes; at most 300,000")
    path = f"{server.url}/v1/models/{server.model}:predict"
    answer = requests.post(path, data=iter([b"x" * 100_000] * 4), timeout=30)
    assert answer.status_code == 413
    assert "of more than 300,000 bytes" in answer.json()["error"]


def opened(server, head):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(head)
    return connection


def received(connection):
    content = b""
    while chunk := connection.recv(65_536):
        content += chunk
    connection.close()
    return content.decode(errors="replace")


def half_a_request(server, body):
    head = f"POST /v1/models/{server.model}:predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return opened(server, f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:10])


def test_a_body_or_headers_that_do_not_come_are_not_waited_for(impatient):
    slow = half_a_request(impatient, b"x" * 100)
    start = time.monotonic()
    assert received(slow).startswith("HTTP/1.1 408")
    assert received(opened(impatient, b"POST /v1/models/x HTTP/1.1\r\nHost:")) == ""
    assert received(opened(impatient, b"")) == ""
    assert time.monotonic() - start < 15
    huge = opened(impatient, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 60_000 + b"\r\n\r\n")
    assert received(huge).startswith("HTTP/1.1 400")
    assert received(opened(impatient, b"no HTTP\r\n\r\n")).startswith("HTTP/1.1 400")
    assert requests.get(f"{impatient.url}/", timeout=9).status_code == 200


def test_one_request_too_many_is_a_503_to_try_again_later(impatient, digits):
    holding = half_a_request(impatient, b"x" * 100)
    time.sleep(0.2)
    answer = post(impatient, {"instances": ONE})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"] == "1 requests are running, the limit; try again"
    assert requests.get(f"{impatient.url}/", timeout=9).status_code == 200  # health is not counted
    with Client(impatient.url, impatient.model, retries=6) as client:  # until the one that holds is given up
        assert client.predict(digits.test.images[:1])["logits"].shape == (1, 10)
    holding.close()


# How it ends


def test_it_finishes_a_running_request_when_it_is_told_to_stop(run):
    server = started(run.folder)
    body = json.dumps({"instances": ONE}).encode()
    connection = half_a_request(server, body)
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    connection.sendall(body[10:])
    answer = received(connection)
    assert answer.startswith("HTTP/1.1 200")
    assert "predictions" in answer
    assert server.process.wait(PATIENCE) == 0
    server.process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_under_load_every_client_ends_with_an_answer_or_an_error(number, run, digits):
    server = started(run.folder)
    images = digits.test.images[:2]
    expected = run.int8_model().predict(images)
    ends, wrong, answers = [], [], []

    def ask():
        with Client(server.url, server.model, timeout=5, retries=0) as client:
            try:
                for _ in range(5_000):
                    found = client.predict(images)["logits"]
                    answers.append(1)
                    if not np.allclose(found, expected, rtol=1e-5):
                        wrong.append(found)
            except (OSError, ServingError) as error:
                ends.append(error)

    clients = [threading.Thread(target=ask) for _ in range(6)]
    for one in clients:
        one.start()
    until = time.monotonic() + PATIENCE
    while len(answers) < 20 and time.monotonic() < until:
        time.sleep(0.05)
    server.process.send_signal(number)
    for one in clients:
        one.join(PATIENCE)
    assert not any(one.is_alive() for one in clients)
    assert len(answers) >= 20
    assert wrong == []
    assert len(ends) == 6
    assert server.process.wait(PATIENCE) == (0 if number == signal.SIGTERM else -number)
    server.process.stdout.close()


def test_a_port_in_use_is_one_line(run, server, capsys):
    assert main(["serve", str(run.folder), "--port", str(server.port)]) == 1
    message = capsys.readouterr().err
    assert f"error: cannot listen on 127.0.0.1:{server.port}" in message
    assert "choose another with --port" in message
    assert main(["serve", str(run.folder), "--host", "203.0.113.1"]) == 1
    assert "cannot listen on 203.0.113.1:8501" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="no /proc to see a process's libraries in")
def test_an_int8_net_is_served_without_tensorflow(run):
    server = started(run.folder)
    loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert stopped(server) == 0
    assert "ai_edge_litert" in loaded
    assert "libtensorflow_framework" not in loaded


def test_the_command_classifies_files_by_it(server, digits, models, tmp_path, capsys):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(files, digits.test.images):
        path.write_bytes(png(image))
    ask = ["predict", *map(str, files), "--url", server.url, "--model", server.model]
    assert main([*ask, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    expected = models.int8.predict(digits.test.images[:3]).argmax(1)
    assert [row["class_id"] for row in rows] == expected.tolist()
    assert [row["file"] for row in rows] == [str(path) for path in files]
    assert main(ask) == 0
    assert "probability" in capsys.readouterr().out
    (tmp_path / "note.png").write_text("a note")
    assert main(["predict", str(tmp_path / "note.png"), *ask[4:]]) == 1
    assert "the server answered 400: 6 bytes that are no PNG or JPEG image" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "none.png"), *ask[4:]]) == 2


# In one process


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_the_callers_error(port, run, capsys):
    assert main(["serve", str(run.folder), "--port", str(port)]) == 2
    assert f"port is {port}; it must be from 1 to 65535" in capsys.readouterr().err


def test_an_ipv6_address_is_printed_in_brackets(run, monkeypatch):
    from factorizenet_tf.serving import server

    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    told = []
    monkeypatch.setattr(server, "_run", lambda repository, nets, bound, limits: bound.close())
    server.serve([run.folder], host="::1", port=0, started=lambda nets, url: told.append(url))
    assert re.fullmatch(r"http://\[::1\]:\d+", told[0])


def test_sources_that_cannot_be_served_are_refused(run, exported, tmp_path):
    with pytest.raises(ValueError, match="two models are called"):
        all_nets([run.folder, run.folder / "model.tflite", run.folder])
    with pytest.raises(ValueError, match="cannot be served; use letters"):
        all_nets([f"a/b={run.folder}"])
    with pytest.raises(FileNotFoundError):
        all_nets([tmp_path / "none"])
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ValueError, match="is no version that `factorizenet export --serving` wrote"):
        all_nets([tmp_path])
    assert [net.name for net in all_nets([run.folder, f"b={run.folder}"])] == [f"{run.spec.name}-int8", "b"]


def test_a_bomb_and_other_formats_are_no_images(monkeypatch):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    for content, message in (
        (bomb.getvalue(), "20000 x 20000|exceeds limit"),
        (b"GIF89a" + bytes(50), "no PNG or JPEG"),
    ):
        with pytest.raises(ValueError, match=message):
            read_image(content, (16, 16, 1))


def test_images_of_a_request_are_the_lists_numbers(run):
    (net,) = all_nets([run.folder])
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1))
    found, in_rows = images_of({"instances": images.tolist()}, net, 2)
    assert (found.dtype, in_rows) == (np.uint8, True)
    np.testing.assert_array_equal(found, images)
    with pytest.raises(ValueError, match="2 images in one request; at most 1"):
        images_of({"instances": images.tolist()}, net, 1)


def test_limits_are_above_zero():
    from factorizenet_tf.serving.server import Limits

    with pytest.raises(ValueError, match="images is 0; it must be above 0"):
        Limits(images=0)
    assert fnet.serving.serve is not None
