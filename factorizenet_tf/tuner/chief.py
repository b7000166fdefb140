"""KerasTuner's chief and workers over gRPC, with workers that die, a chief that restarts, and an end.

KerasTuner's own server waits for ever for a worker that was killed, and its client for an hour for a chief that is gone.
A worker that comes when the others have done all finds the end in the search's folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

from ._keras_tuner import keras_tuner  # noqa: F401 (before its parts)

__all__ = [
    "POLL_SECONDS",
    "SearchEndedError",
    "end_watch",
    "heartbeat",
    "is_chief",
    "is_worker",
    "patient_client",
    "say_ended",
    "serve",
    "serve_stock",
]

POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0
CHIEF_SECONDS = 300.0  # how long a worker waits for a chief that does not answer
RECONNECT_MS = 1000  # gRPC's own pauses grow to minutes: of two workers one would come when the other has done all
ENDED_FILE = "ended"


class SearchEndedError(ConnectionError):
    """The chief is gone because its search has ended."""


def is_chief() -> bool:
    """Whether the environment says that this process is the chief."""
    from keras_tuner.src.distribute import utils

    return utils.is_chief_oracle()


def is_worker() -> bool:
    """Whether the environment says that this process is a worker of a chief."""
    from keras_tuner.src.distribute import utils

    return utils.has_chief_oracle() and not utils.is_chief_oracle()


def address() -> str:
    """The chief's host:port, by KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT."""
    return f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"


def serve(oracle) -> Exception | None:
    """Answer the workers until the search has ended and each living one was told, or until the oracle raises.

    Costs are measured here, between the answers: a worker that asks meanwhile is told to wait, and its heartbeat heard.

    Returns:
        What the oracle raised.

    Raises:
        OSError: the address cannot be listened on.
    """
    oracle.defers = True
    try:
        with _listening(oracle) as servicer:
            while servicer.oracle.raised is None and not (servicer.stop_triggered and oracle.is_done()):
                oracle.release_dead()
                oracle.measure_wanted()
                time.sleep(POLL_SECONDS)
    finally:
        oracle.defers = False
    return servicer.oracle.raised


def serve_stock(oracle) -> Exception | None:
    """Answer the workers of a stock oracle as KerasTuner does, which waits for ever for one that was killed. As `serve`."""
    with _listening(oracle) as servicer:
        while servicer.oracle.raised is None:
            time.sleep(POLL_SECONDS)
            if servicer.stop_triggered and not (oracle.ongoing_trials or oracle.tuner_ids):
                break
    return servicer.oracle.raised


@contextlib.contextmanager
def _listening(oracle):
    """Within the block a server answers the workers; gives KerasTuner's servicer of the oracle, a `_Noted`."""
    import grpc
    from keras_tuner.src.distribute.oracle_chief import OracleServicer
    from keras_tuner.src.protos import get_service_grpc

    _check_free()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    servicer = OracleServicer(_Noted(oracle))
    get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        bound = server.add_insecure_port(address())
    except RuntimeError:
        bound = 0
    if not bound:
        raise _cannot_listen()
    server.start()
    try:
        yield servicer
    finally:
        server.stop(grace=POLL_SECONDS).wait()


class _Noted:
    """An oracle that keeps what one of its methods raised, and no lock: KerasTuner's `synchronized` leaves it held."""

    def __init__(self, oracle):
        self._oracle, self.raised = oracle, None

    def __getattr__(self, name):
        from keras_tuner.src.engine import oracle as engine

        method = getattr(self._oracle, name)

        def noted(*arguments, **options):
            try:
                return method(*arguments, **options)
            except Exception as error:
                if not self._is_stray(name, arguments):
                    self.raised = error
                if engine.THREADS[self._oracle] == threading.current_thread().name:
                    engine.THREADS[self._oracle] = None
                    engine.LOCKS[self._oracle].release()
                raise

        return noted

    def _is_stray(self, name, arguments):
        """Whether a call is of a trial that is not known: its worker is left over from another search."""
        if name not in ("get_trial", "update_trial", "end_trial"):
            return False
        return getattr(arguments[0], "trial_id", arguments[0]) not in self._oracle.trials


def _check_free() -> None:
    """Raise OSError where the address is taken; gRPC would share it with another chief's."""
    host, port = os.environ["KERASTUNER_ORACLE_IP"], os.environ["KERASTUNER_ORACLE_PORT"]
    bound = 0
    try:
        for family, kind, _, _, where in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(where)
                    bound += 1
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        raise
    except OSError:
        raise _cannot_listen() from None
    if not bound:
        raise _cannot_listen()


def _cannot_listen():
    return OSError(f"cannot listen on {address()}; set KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT to a free one")


def say_ended(folder: Path) -> None:
    """Leave in the search's folder that its chief has ended, for workers that it could not tell."""
    (folder / ENDED_FILE).write_text(uuid.uuid4().hex)


def end_watch(folder: Path) -> Callable[[], bool]:
    """A function that says whether a chief has ended in the folder since this call."""

    def mark():
        try:
            return (folder / ENDED_FILE).read_text()
        except OSError:
            return ""

    before = mark()
    return lambda: mark() not in ("", before)


class _Patient:
    """A gRPC stub whose calls are made again until the chief answers, for so long and no longer.

    Each of the oracle's calls may come twice: the same worker gets the same trial, and a trial ends once.
    """

    def __init__(self, stub, seconds, has_ended):
        self._stub, self._seconds, self._has_ended = stub, seconds, has_ended

    def __getattr__(self, name):
        import grpc

        call = getattr(self._stub, name)

        def patient(request, wait_for_ready, timeout):
            end = time.monotonic() + self._seconds
            while True:
                left = max(0.1, end - time.monotonic())
                try:
                    return call(request, wait_for_ready=False, timeout=min(timeout, left))
                except grpc.RpcError as error:
                    code, details = error.code(), error.details()
                if code is grpc.StatusCode.UNAVAILABLE and self._has_ended():
                    raise SearchEndedError(f"the search of the chief at {address()} has ended")
                if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise ConnectionError(f"the chief at {address()} refused: {details}; see what it printed itself")
                if code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > end:
                    raise ConnectionError(
                        f"the chief at {address()} did not answer for {self._seconds:g} s ({code.name}); "
                        "start it again with its command, then this worker"
                    )
                time.sleep(min(POLL_SECONDS, left))

        return patient


def patient_client(client, seconds: float = CHIEF_SECONDS, has_ended: Callable[[], bool] = lambda: False):
    """A worker's oracle client that raises ConnectionError where the chief stays away for so long.

    Where it is away and `has_ended` says that its search is over, SearchEndedError, a ConnectionError too, at once.
    """
    import grpc
    from keras_tuner.src.protos import get_service_grpc

    options = [("grpc.initial_reconnect_backoff_ms", RECONNECT_MS), ("grpc.max_reconnect_backoff_ms", RECONNECT_MS)]
    stub = get_service_grpc().OracleStub(grpc.insecure_channel(address(), options=options))
    client.stub = _Patient(stub, seconds, has_ended)
    return client


@contextlib.contextmanager
def heartbeat(oracle, trial_id: str, seconds: float = HEARTBEAT_SECONDS):
    """Within the block a worker tells the chief that it is alive: asking for its trial says so."""
    ended = threading.Event()

    def beat():
        while not ended.wait(seconds):
            try:
                oracle.get_trial(trial_id)
            except ConnectionError:  # the worker's own next call says so
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
