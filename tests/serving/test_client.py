import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from grpc_services import grpc_services
from serving_contract import check_contract

from factorizenet_tf.cli import main
from factorizenet_tf.serving.client import Client, ServingError

IMAGES = np.zeros((2, 4, 4, 1), np.uint8)
ROW = {"logits": [0.0, 1.0], "probabilities": [0.25, 0.75], "class_id": 1, "class_name": "cat"}
FINE = (200, {"predictions": [ROW, ROW]})


@pytest.fixture
def scripted():
    """A server on a real socket that gives prepared answers in turn, the last one again and again."""
    opened = []

    def start(*answers):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers, port = dict(self.headers), self.client_address[1]
                asked.append(SimpleNamespace(path=self.path, body=body, headers=headers, port=port))
                answer = answers[min(len(asked), len(answers)) - 1]
                if callable(answer):
                    with contextlib.suppress(OSError):
                        answer(self)
                    self.close_connection = True
                    return
                code, content = answer
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = handle_one  # noqa: N815

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened.append(server)
        return SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", asked=asked)

    yield start
    for server in opened:
        server.shutdown()
        server.server_close()


def hang(handler):
    time.sleep(3)


def dripping(at_once, by_and_by):
    def drip(handler):
        handler.wfile.write(at_once)
        for byte in by_and_by:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.1)

    return drip


drip_status = dripping(b"", b"HTTP/1.1 200 Everything is very fine\r\n")
drip_headers = dripping(b"HTTP/1.1 200 OK\r\n", b"Content-Length: 100\r\nX: 1\r\n\r\n")
drip_body = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b" " * 30)
drip_chunk_size = dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0" * 30)


def die(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")


def test_a_request_is_tensorflow_servings_and_the_answer_becomes_arrays(scripted):
    server = scripted(FINE)
    with Client(server.url, "net") as client:
        found = client.predict(IMAGES)
        client.predict_files([b"one", b"two"])
    assert {key: (value.dtype.kind, value.shape) for key, value in found.items()} == {
        "logits": ("f", (2, 2)),
        "probabilities": ("f", (2, 2)),
        "class_id": ("i", (2,)),
        "class_name": ("U", (2,)),
    }
    assert found["logits"].tolist() == [[0, 1], [0, 1]]
    first, second = server.asked
    assert first.path == "/v1/models/net:predict"
    assert first.headers["Content-Type"] == "application/json"
    assert json.loads(first.body) == {"signature_name": "serving_default", "instances": IMAGES.tolist()}
    assert json.loads(second.body)["instances"] == [{"b64": "b25l"}, {"b64": "dHdv"}]
    assert json.loads(second.body)["signature_name"] == "serving_bytes"


@pytest.mark.parametrize(
    ("options", "place"), [({}, ""), ({"version": 12}, "/versions/12"), ({"label": "canary"}, "/labels/canary")]
)
def test_version_and_label_are_part_of_the_address(options, place, scripted):
    server = scripted((200, {"model_version_status": [], "metadata": {}, **FINE[1]}))
    with Client(server.url, "net", **options) as client:
        client.status(), client.metadata(), client.predict(IMAGES)
    paths = [one.path for one in server.asked]
    assert paths == [f"/v1/models/net{place}{end}" for end in ("", "/metadata", ":predict")]


@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(code, scripted):
    server = scripted((code, {"error": "busy"}), (code, {"error": "busy"}), FINE)
    start = time.monotonic()
    with Client(server.url, "net", retries=2) as client:
        assert client.predict(IMAGES)["class_id"].tolist() == [1, 1]
    assert len(server.asked) == 3
    assert time.monotonic() - start >= 0.3  # pauses of 0.1 and 0.2 s
    server = scripted((code, {"error": "busy"}))
    with Client(server.url, "net", retries=1) as client, pytest.raises(ServingError) as caught:
        client.predict(IMAGES)
    assert (caught.value.status, len(server.asked)) == (code, 2)


@pytest.mark.parametrize("code", [400, 404, 413, 500])
def test_a_refusal_is_not_asked_again_and_carries_the_servers_reason(code, scripted):
    server = scripted((code, {"error": "the reason"}))
    with (
        Client(server.url, "net") as client,
        pytest.raises(ServingError, match=f"answered {code}: the reason") as caught,
    ):
        client.predict(IMAGES)
    assert caught.value.status == code
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [hang, drip_status, drip_headers, drip_body, drip_chunk_size],
    ids=["hangs", "status", "headers", "body", "chunk_size"],
)
def test_a_server_that_hangs_or_drips_costs_the_timeout(answer, scripted):
    server = scripted(answer)
    start = time.monotonic()
    with (
        Client(server.url, "net", timeout=0.3, retries=0) as client,
        pytest.raises(TimeoutError, match=r"no answer from http://127\S+ within 0\.3 s"),
    ):
        client.predict(IMAGES)
    assert time.monotonic() - start < 1.5


def test_after_a_timeout_one_connection_serves_all_further_calls(scripted):
    server = scripted(drip_headers, FINE)
    with Client(server.url, "net", timeout=1, retries=1) as client:
        for _ in range(3):
            client.predict(IMAGES)
    late, *rest = [one.port for one in server.asked]
    assert len(rest) == 3
    assert set(rest) == {rest[0]} != {late}


def test_a_server_that_takes_no_request_costs_the_timeout():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        start = time.monotonic()
        with Client(url, "net", timeout=0.3, retries=0) as client, pytest.raises(TimeoutError, match=r"0\.3 s"):
            client.predict_files([bytes(20_000_000)])
    assert time.monotonic() - start < 1.5


def test_the_deadline_holds_over_all_attempts(scripted):
    server = scripted(hang)
    start = time.monotonic()
    with Client(server.url, "net", timeout=0.3, retries=50, deadline=1) as client, pytest.raises(TimeoutError):
        client.predict(IMAGES)
    assert 0.9 < time.monotonic() - start < 2.5
    assert 2 <= len(server.asked) <= 4


def test_a_server_that_dies_is_asked_again_and_then_is_a_connection_error(scripted):
    server = scripted(die, FINE)
    with Client(server.url, "net", retries=1) as client:
        assert client.predict(IMAGES)["class_id"].tolist() == [1, 1]
    server = scripted(die)
    with (
        Client(server.url, "net", retries=1) as client,
        pytest.raises(ConnectionError, match="cannot reach http://127"),
    ):
        client.predict(IMAGES)
    assert len(server.asked) == 2


def test_nobody_there_is_a_connection_error_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with Client(url, "net", retries=0) as client, pytest.raises(ConnectionError, match="is the server running there"):
        client.status()
    assert time.monotonic() - start < 2
    assert main(["predict", __file__, "--url", url, "--model", "net", "--retries", "0"]) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b"3",
        {},
        {"predictions": []},
        {"predictions": [ROW]},
        {"predictions": [1, 2]},
        {"predictions": 5},
        {"predictions": [ROW, {"logits": [1]}]},
        {"predictions": [{"logits": "x"}, {"logits": "y"}]},
    ],
)
def test_an_answer_that_is_none_is_an_error_of_the_server(content, scripted):
    server = scripted((200, content))
    with Client(server.url, "net", retries=0) as client, pytest.raises(ServingError) as caught:
        client.predict(IMAGES)
    assert caught.value.status == 502


def test_a_redirection_is_not_followed(scripted):
    def elsewhere(handler):
        handler.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")

    with Client(scripted(elsewhere).url, "net") as client, pytest.raises(ServingError) as caught:
        client.predict(IMAGES)
    assert caught.value.status == 302


def test_it_waits_until_a_version_is_available(scripted):
    def states(*names):
        return 200, {"model_version_status": [{"version": "1", "state": name} for name in names]}

    server = scripted((404, {"error": "none"}), states("LOADING"), states("UNLOADING", "AVAILABLE"))
    with Client(server.url, "net") as client:
        client.wait_until_ready(5)
    assert len(server.asked) == 3
    with (
        Client(scripted(states("LOADING")).url, "net") as client,
        pytest.raises(TimeoutError, match="versions are LOADING"),
    ):
        client.wait_until_ready(0.5)


def test_waiting_for_a_server_that_hangs_takes_no_longer_than_it_may(scripted):
    server = scripted(hang)
    start = time.monotonic()
    with (
        Client(server.url, "net", timeout=20) as client,
        pytest.raises(TimeoutError, match=r"was not ready after 0\.5 s"),
    ):
        client.wait_until_ready(0.5)
    assert 0.4 < time.monotonic() - start < 1.5


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("localhost:8501", {}, "it must be http://host:port"),
        ("ftp://x", {}, "it must be http://host:port"),
        ("http://", {}, "it must be http://host:port"),
        ("http://x", {"model": "a/b"}, "without slash or colon"),
        ("http://x", {"model": ""}, "without slash or colon"),
        ("http://x", {"version": 1, "label": "stable"}, "exclude each other"),
        ("http://x", {"timeout": 0}, "timeout is 0"),
        ("http://x", {"retries": -1}, "retries is -1"),
        ("http://x", {"deadline": 0}, "deadline is 0"),
    ],
)
def test_arguments_out_of_range_are_refused(url, options, message):
    with pytest.raises(ValueError, match=message):
        Client(url, **({"model": "net"} | options))


def test_images_are_checked_before_they_are_sent(scripted):
    server = scripted(FINE)
    with Client(server.url, "net") as client:
        with pytest.raises(TypeError, match="dtype float64"):
            client.predict(IMAGES / 255)
        with pytest.raises(ValueError, match="for one image"):
            client.predict(IMAGES[0])
        with pytest.raises(TypeError, match="contents must be"):
            client.predict_files([])
        with pytest.raises(TypeError, match="contents must be"):
            client.predict_files(["a.png"])
    assert server.asked == []


def test_the_command_sends_many_files_in_requests_of_64(scripted, tmp_path, capsys):
    path = tmp_path / "a.png"
    path.write_bytes(b"content")
    server = scripted((200, {"predictions": [ROW] * 64}), (200, {"predictions": [ROW] * 36}))
    assert main(["predict", *[str(path)] * 100, "--url", server.url, "--model", "net", "--json"]) == 0
    assert [row["class"] for row in json.loads(capsys.readouterr().out)] == ["cat"] * 100
    assert [len(json.loads(one.body)["instances"]) for one in server.asked] == [64, 36]


def test_the_command_says_what_a_model_without_class_names_gives(scripted, capsys):
    server = scripted((200, {"predictions": [{"logits": [0.0, 1.0], "score": [1.0]}]}))
    assert main(["predict", __file__, "--url", server.url, "--model", "net"]) == 2
    message = "the model net gives logits, score, not class_name and probabilities; ask one that"
    assert message in capsys.readouterr().err


def test_rest_needs_no_tensorflow(scripted):
    server = scripted(FINE)
    code = f"""
import sys, numpy as np, factorizenet_tf as fnet
with fnet.serving.Client({server.url!r}, "net") as client:
    assert client.predict(np.zeros((2, 4, 4, 1), np.uint8))["class_name"].tolist() == ["cat", "cat"]
assert not {{"tensorflow", "grpc", "pandas"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# gRPC


@pytest.fixture(scope="module")
def grpc_server(run, tmp_path_factory):
    from factorizenet_tf.serving.saved_model import export

    made = export(run.folder, tmp_path_factory.mktemp("grpc"), precision="float")
    with grpc_services(made.folder, made.name) as server:
        yield server


def test_the_contract_holds_over_grpc(grpc_server):
    check_contract(grpc_server.model, grpc_server.url)


def test_grpc_gives_what_the_model_does(grpc_server, models, digits):
    images = digits.test.images[:5]
    expected = models.float(images / np.float32(255), training=False).numpy()
    with Client(grpc_server.url, grpc_server.model, version=1) as client:
        found = client.predict(images)
        assert client.status()[0]["state"] == "AVAILABLE"
        client.wait_until_ready(5)
        told = client.metadata()["signature_def"]["signature_def"]
    np.testing.assert_allclose(found["logits"], expected, atol=1e-4)
    assert found["class_name"].tolist() == [digits.class_names[i] for i in expected.argmax(1)]
    assert told["serving_default"]["method_name"] == "tensorflow/serving/predict"
    assert grpc_server.calls[-1].version.value == 1


def test_grpc_sends_files_too(grpc_server, digits):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(digits.test.images[0].squeeze()).save(file, "PNG")
    with Client(grpc_server.url, grpc_server.model) as client:
        found = client.predict_files([file.getvalue()])
        np.testing.assert_allclose(found["logits"], client.predict(digits.test.images[:1])["logits"], atol=1e-5)
        with pytest.raises(ServingError, match="INVALID_ARGUMENT") as caught:
            client.predict_files([b"no image"])
    assert caught.value.status == 400


def test_grpc_failures_are_the_same_errors_as_rests(grpc_server, digits):
    images = digits.test.images[:1]
    with Client(grpc_server.url, "other") as client, pytest.raises(ServingError, match="Servable not found") as caught:
        client.predict(images)
    assert caught.value.status == 404
    unknown = Client(grpc_server.url, grpc_server.model, version=9)
    with unknown as client, pytest.raises(ServingError, match="NOT_FOUND") as caught:
        client.predict(images)
    assert caught.value.status == 404
    with Client(grpc_server.url, grpc_server.model) as client, pytest.raises(ServingError, match="INVALID") as caught:
        client.predict(np.zeros((1, 24, 16, 1), np.uint8))
    assert caught.value.status == 400
    slow = Client(grpc_server.url, grpc_server.model, label="canary", timeout=0.3, retries=0)
    with slow as client, pytest.raises(TimeoutError, match=r"within 0\.3 s"):
        client.predict(images)
    with (
        Client("grpc://127.0.0.1:1", "net", retries=0) as client,
        pytest.raises(ConnectionError, match="cannot reach grpc"),
    ):
        client.predict(images)


@pytest.fixture
def grpc_scripted():
    """gRPC servers whose Predict is a function of the call's context."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    opened = []

    def start(predict, port=0):
        class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
            def Predict(self, request, context):  # noqa: N802
                return predict(context)

        server = grpc.server(futures.ThreadPoolExecutor(1))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Predictions(), server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        opened.append(server)
        return SimpleNamespace(url=f"grpc://127.0.0.1:{port}", port=port, stop=lambda: server.stop(0))

    yield start
    for server in opened:
        server.stop(0).wait(10)


@pytest.mark.parametrize("goes", ["stopped", "cancelling"])
def test_a_grpc_server_that_goes_in_mid_call_is_a_connection_error(goes, grpc_scripted):
    def go(context):
        server.stop() if goes == "stopped" else context.cancel()
        time.sleep(0.5)

    server = grpc_scripted(go)
    with (
        Client(server.url, "net", retries=0) as client,
        pytest.raises(ConnectionError, match="cannot reach grpc://127"),
    ):
        client.predict(IMAGES)


def test_a_grpc_server_that_is_killed_in_mid_call_is_a_connection_error():
    code = """
import os, signal, grpc
from concurrent import futures
def predict(request, context):
    os.kill(os.getpid(), signal.SIGKILL)
handlers = {"Predict": grpc.unary_unary_rpc_method_handler(predict)}
service = grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", handlers)
server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[service])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        url = f"grpc://127.0.0.1:{int(process.stdout.readline())}"
        with Client(url, "net", timeout=20, retries=0) as client, pytest.raises(ConnectionError, match="cannot reach"):
            client.predict(IMAGES)
    assert process.returncode == -signal.SIGKILL


def test_a_grpc_server_that_goes_in_mid_call_and_comes_back_is_asked_again(grpc_scripted):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    def answer(context):
        return predict_pb2.PredictResponse(outputs={"class_id": tf.make_tensor_proto([1, 1])})

    def go(context):
        server.stop()
        threading.Timer(0.3, grpc_scripted, [answer, server.port]).start()
        time.sleep(0.5)

    server = grpc_scripted(go)
    with Client(server.url, "net", retries=5) as client:
        assert client.predict(IMAGES)["class_id"].tolist() == [1, 1]
