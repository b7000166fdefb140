"""Serve int8 LiteRT nets over HTTP in TensorFlow Serving's REST form: one FastAPI app, run by uvicorn.

Source: https://www.tensorflow.org/tfx/serving/api_rest.
"""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..data import read_image
from .classifier import Classifier, load_classifiers

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"the server needs {error.name}: pip install 'factorizenet_tf[serve]'") from None

__all__ = ["MAX_BYTES", "images_of", "make_app", "serve"]

MAX_IMAGES = 64  # in one request; more is 400
MAX_BYTES = 16 * 2**20  # of one request's body; more is 413
MAX_CONNECTIONS = 64  # at once, idle ones too; the next is 503
BODY_SECONDS = 10.0  # until a body is whole; later is 408
GRACE_SECONDS = 10  # that running requests get when the server is told to stop
HEADER_BYTES = 32_768
SIGNATURES = {"serving_default": "image", "serving_bytes": "image_bytes"}
VERSION = "1"  # of every net here


def serve(
    sources: Sequence[str | os.PathLike],
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    threads: int = 1,
    zoo_dir: str | os.PathLike | None = None,
    max_bytes: int = MAX_BYTES,
    started: Callable[[Mapping[str, Classifier], str], None] | None = None,
) -> None:
    """Serve int8 nets over HTTP until SIGINT or SIGTERM; running requests are then finished.

    There is no authentication and no TLS, and a client that never sends its headers keeps its connection: put a proxy in
    front of the port if more than this machine's own programs can reach it.

    Args:
        sources: as for `load_classifiers`: names of the zoo, runs' folders, .tflite files; `name=source` renames.
        host: to listen on; "0.0.0.0" for every interface.
        port: 0 takes a free one.
        threads: of one inference.
        zoo_dir: where names are looked up; None: as `zoo.load`.
        max_bytes: of one request's body.
        started: called with the nets by name and the server's address once it listens.

    Raises:
        FileNotFoundError, ValueError: as `load_classifiers`, or an argument is out of its range.
        ConnectionError: the address cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}; it must be from 1 to 65535, or 0 for a free one")
    if max_bytes < 1:
        raise ValueError(f"max_bytes is {max_bytes}; it must be at least 1")
    classifiers = load_classifiers(sources, threads=threads, zoo_dir=zoo_dir)
    family, shown = (socket.AF_INET6, f"[{host}]") if ":" in host else (socket.AF_INET, host)
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while attempting")[0]
        remedy = "choose an address of this machine with --host, or another port with --port, 0 for a free one"
        raise ConnectionError(f"cannot listen on {shown}:{port} ({reason}); {remedy}") from None
    config = uvicorn.Config(
        make_app(classifiers, max_bytes),
        http="h11",
        h11_max_incomplete_event_size=HEADER_BYTES,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        lifespan="off",
        log_level="error",
        access_log=False,
    )
    previous = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it once more when it has stopped
    try:
        if started is not None:
            started(classifiers, f"http://{shown}:{listener.getsockname()[1]}")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, previous)
        listener.close()


def make_app(classifiers: Mapping[str, Classifier], max_bytes: int = MAX_BYTES) -> FastAPI:
    """Make the app that answers for nets, by name, as TensorFlow Serving's REST API does."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception):
        return JSONResponse({"error": "the server failed; its own output has the details"}, 500)

    @app.get("/healthz")
    async def health():
        return JSONResponse({"status": "ok"})

    def of_name(name, version):
        if name not in classifiers:
            raise HTTPException(404, f"no model {name!r}; there are {', '.join(classifiers)}")
        if version != VERSION:
            raise HTTPException(404, f"{name} has no version {version}; it has {VERSION}")
        return classifiers[name]

    def answer(classifier, body):
        try:
            images, in_rows = images_of(body, classifier.model.input_shape, classifier.model.resize)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        columns = {key: np.asarray(value).tolist() for key, value in classifier.classify(images).items()}
        if not in_rows:
            return JSONResponse({"outputs": columns})
        return JSONResponse({"predictions": [dict(zip(columns, row)) for row in zip(*columns.values())]})

    async def predict(request: Request, name: str, version: str = VERSION):
        classifier, body = of_name(name, version), bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > max_bytes:
                        raise HTTPException(413, f"a request of more than {max_bytes:,} bytes; send fewer images")
        except TimeoutError:
            raise HTTPException(408, f"the request was not whole after {BODY_SECONDS:g} s; send fewer images") from None
        return await asyncio.to_thread(answer, classifier, bytes(body))

    async def predict_by_get(name: str, version: str = VERSION):
        of_name(name, version)
        remedy = f"send a POST with a JSON body, e.g. curl -d @request.json .../v1/models/{name}:predict"
        raise HTTPException(405, f"a GET predicts nothing; {remedy}", {"Allow": "POST"})

    async def status(name: str, version: str = VERSION):
        of_name(name, version)
        state = {"version": VERSION, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        return JSONResponse({"model_version_status": [state]})

    async def metadata(name: str, version: str = VERSION):
        classifier = of_name(name, version)
        spec = {"name": name, "signature_name": "", "version": VERSION}
        signatures = {"signature_def": {"signature_def": _signatures(classifier)}}
        return JSONResponse({"model_spec": spec, "metadata": signatures})

    for path in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
        app.post(f"{path}:predict")(predict)
        app.get(f"{path}:predict")(predict_by_get)
        app.get(f"{path}/metadata")(metadata)
        app.get(path)(status)
    return app


def images_of(body: bytes, shape: Sequence[int], resize: str = "stretch") -> tuple[np.ndarray, bool]:
    """Read the images uint8 (n, height, width, channels) of a request, and tell whether it has rows ("instances").

    The signature `serving_default` takes nested lists of integers 0..255, `serving_bytes` image files as {"b64": ...}, read by
    `read_image`; either may be wrapped in its input's name. A request for columns has "inputs" instead of "instances".

    Args:
        body: the request's JSON.
        shape: (height, width, channels).
        resize: as for `read_image`.

    Raises:
        ValueError: the request has another form; the message says what is wrong.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request is no JSON ({error})") from None
    if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
        raise ValueError('the request must be a JSON object with either "instances" (rows) or "inputs" (columns)')
    signature = request.get("signature_name") or "serving_default"
    if not isinstance(signature, str) or signature not in SIGNATURES:
        raise ValueError(f"no signature {signature!r}; there are {', '.join(SIGNATURES)}")
    in_rows, key = "instances" in request, SIGNATURES[signature]
    values = request["instances"] if in_rows else _without_name(request["inputs"], key)
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_IMAGES:
        count = len(values) if isinstance(values, list) else "no"
        raise ValueError(f"the request has {count or 'no'} images; give a list of 1 to {MAX_IMAGES}")
    values = [_without_name(value, key) for value in values] if in_rows else values
    if signature == "serving_bytes":
        return np.stack([read_image(_decoded(value), shape, resize) for value in values]), in_rows
    return _pixels(values, tuple(shape)), in_rows


def _without_name(value, key):
    return value[key] if isinstance(value, dict) and set(value) == {key} else value


def _decoded(value):
    if not isinstance(value, dict) or set(value) != {"b64"} or not isinstance(value["b64"], str):
        raise ValueError('serving_bytes takes image files, each as {"b64": "..."}; pixels go to serving_default')
    try:
        return base64.b64decode(value["b64"], validate=True)
    except ValueError as error:
        raise ValueError(f"an image's base64 is damaged ({error})") from None


def _pixels(values, shape):
    if any(isinstance(value, dict) and "b64" in value for value in values):
        raise ValueError('serving_default takes pixels; for files in b64 give "signature_name": "serving_bytes"')
    try:
        array = np.array(values)
    except ValueError:  # lists of different lengths
        array = np.array(values, object)
    if array.dtype.kind not in "iu" or array.shape[1:] != shape:
        kind = {"i": "integers", "u": "integers", "f": "fractions"}.get(array.dtype.kind, "not all integers")
        wanted = f"integers 0..255 of shape (n, {', '.join(map(str, shape))})"
        raise ValueError(f"the images are of shape {array.shape}, {kind}; they must be {wanted}")
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"the images have pixels of {array.min()} to {array.max()}; they must be 0..255")
    return array.astype(np.uint8)


def _signatures(classifier):
    """Describe a net's signatures as TensorFlow Serving's metadata does."""

    def tensor(name, dtype, *shape):
        sizes = [{"size": str(size), "name": ""} for size in (-1, *shape)]
        return {name: {"dtype": dtype, "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": name}}

    inputs = tensor("image", "DT_UINT8", *classifier.model.input_shape) | tensor("image_bytes", "DT_STRING")
    outputs = tensor("logits", "DT_FLOAT", len(classifier.labels))
    outputs |= tensor("probabilities", "DT_FLOAT", len(classifier.labels))
    outputs |= tensor("class_id", "DT_INT64") | tensor("class_name", "DT_STRING")
    return {
        name: {"inputs": {key: inputs[key]}, "outputs": outputs, "method_name": "tensorflow/serving/predict"}
        for name, key in SIGNATURES.items()
    }
