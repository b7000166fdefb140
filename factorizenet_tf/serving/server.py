"""A server that runs at once: KServe's Python server on int8 LiteRT models, with TensorFlow Serving's routes.

Prediction, liveness, metrics and Open Inference routes are KServe's; added are status, metadata, versions and labels,
so that one client serves both, and limits on bytes, images, waiting requests and patience.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .server_nets import Net, all_nets

__all__ = ["Limits", "serve"]


@dataclass(frozen=True)
class Limits:
    """What a server bears.

    Args:
        images: in one request (more is 400).
        body_bytes: of one request (more is 413).
        requests: at once; the next is 503 with Retry-After.
        connections: at once, idle ones too; the next is 503.
        body_seconds: until a request is whole (later is 408), its headers counted from the first byte.
        grace_seconds: that running requests get when the server is told to stop.
    """

    images: int = 64
    body_bytes: int = 8 * 2**20
    requests: int = 64
    connections: int = 512
    body_seconds: float = 10.0
    grace_seconds: int = 10

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")


def serve(
    sources: Sequence[str | os.PathLike],
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    threads: int = 1,
    limits: Limits | None = None,
    zoo_dir: str | os.PathLike | None = None,
    started=None,
) -> None:
    """Serve models until SIGINT or SIGTERM; running requests are then finished.

    Args:
        sources: as for `server_nets.load_net`.
        host: to listen on; "0.0.0.0" for every interface. There is no authentication: put it behind a proxy.
        port: 0 takes a free one.
        threads: of one inference.
        limits: None: the defaults.
        zoo_dir: where names are looked up, as for `zoo.load`.
        started: a function that is called with the nets and the address once the port is bound.

    Raises:
        ValueError: the port is not in 0..65535.
        OSError: the port is in use or the host is not this machine's.
        ModuleNotFoundError: KServe is not installed (extra `serve`).
        FileNotFoundError, ValueError: as `load_net`.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}; it must be from 1 to 65535, or 0 for a free one")
    limits = limits or Limits()
    kserve = _kserve()
    nets = all_nets(sources, threads=threads, zoo_dir=zoo_dir)
    if not nets:
        raise ValueError("nothing to serve; give a name of `factorizenet list` or a run's folder")
    bound = _bound(host, port)
    if started is not None:
        started(nets, f"http://{_address(host, bound.getsockname()[1])}")
    repository = kserve.ModelRepository()
    for net in nets:
        repository.update(_model(kserve, net, limits))
    _run(repository, {net.name: net for net in nets}, bound, limits)


def _kserve():
    """KServe, which reads the command line as it is imported, without ours."""
    kept, sys.argv = sys.argv, sys.argv[:1]
    try:
        import kserve
        import kserve.model_server
    except ModuleNotFoundError as error:
        if "kserve" not in str(error):
            raise
        raise ModuleNotFoundError("the server is KServe's: pip install 'factorizenet_tf[serve]'") from None
    finally:
        sys.argv = kept
    return kserve


def _address(host, port):
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bound(host, port) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise ConnectionError(
            f"cannot listen on {_address(host, port)} ({error.strerror or error}); another server may use "
            "the port: choose another with --port, or 0 for a free one"
        ) from None
    return bound


def _model(kserve, net: Net, limits: Limits):
    import orjson
    from kserve.errors import InvalidInput

    from .server_protocol import answer, images_of

    class ServedModel(kserve.Model):
        """A net behind KServe's V1 route; its interpreter is used by one thread."""

        def __init__(self):
            super().__init__(net.name)
            self.enable_latency_logging = False
            self._worker = ThreadPoolExecutor(1, thread_name_prefix=net.name)
            self.ready = True

        async def predict(self, payload, headers=None, response_headers=None):
            return await asyncio.get_running_loop().run_in_executor(self._worker, self._predict, payload)

        def _predict(self, payload):
            try:
                if isinstance(payload, bytes):  # another content type than KServe parses
                    payload = orjson.loads(payload)
                images, in_rows = images_of(payload, net, limits.images)
            except ValueError as error:
                raise InvalidInput(str(error)) from None
            return answer(net.classify(images), in_rows)

    return ServedModel()


def _run(repository, nets, bound, limits) -> None:
    from kserve.model_server import app
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.server import RESTServer

    from .limits import LimitsMiddleware, patient_protocol
    from .routes import add_routes

    for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a stack for each bad request is no log
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")  # KServe's answers are of that class
    data_plane = DataPlane(model_registry=repository)
    server = RESTServer(
        "kserve.model_server:app",
        data_plane,
        ModelRepositoryExtension(model_registry=repository),
        http_port=bound.getsockname()[1],
        grace_period=limits.grace_seconds,
    )
    server.config.limit_concurrency = limits.connections
    server.config.http = patient_protocol(limits.body_seconds)
    app.add_middleware(LimitsMiddleware, limits=limits)
    add_routes(app, data_plane, nets)
    gc.collect()
    gc.freeze()  # each request's JSON is thousands of lists: collecting them must not go through what was loaded
    kept = signal.signal(signal.SIGTERM, _stopped)  # what uvicorn raises again once it has stopped
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, kept)
        bound.close()


def _stopped(number, frame) -> None:
    """Nothing more to do: the server has stopped."""
