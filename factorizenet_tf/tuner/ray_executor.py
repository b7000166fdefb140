"""Run calls as Ray tasks: a `concurrent.futures.Executor` over a Ray cluster (extra `ray`)."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future

from ..data import Dataset

__all__ = ["RayExecutor", "import_ray"]

PROBE_SECONDS, CONNECT_SECONDS = 5, 15
MAX_RETRIES = 20  # of a call whose node died; each time it goes on from its last epoch where storage is shared


def import_ray():
    """Import Ray. Raises ModuleNotFoundError, with the remedy, if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do by itself, and warns of
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError("many machines need Ray: pip install 'factorizenet_tf[ray]'") from None
    return ray


class RayExecutor(Executor):
    """Run each call as a Ray task, which is repeated elsewhere when its node dies.

    A data set among the arguments is put into Ray's object store once, and goes from there to each node. Exceptions of the
    called function are raised as they were, and its call is not repeated. Use as a context.

    Args:
        address: HOST:PORT of a cluster that this machine is a node of (`ray start`), or "local" to start one here.
        num_cpus: CPUs of a node that a call takes.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: no Ray cluster answers there.
    """

    def __init__(self, address: str = "local", *, num_cpus: float = 1):
        self._ray = import_ray()
        self._num_cpus = num_cpus
        self._stored: dict[int, tuple] = {}  # id -> data set, which is kept so that the id stays its own, and reference
        if address != "local":
            _check_answers(address)
        options = {"include_dashboard": False} if address == "local" else {}
        try:
            self._ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (RuntimeError, ValueError, ConnectionError) as error:
            raise ConnectionError(_no_answer(address, str(error).partition("\n")[0])) from None

    def submit(self, function: Callable, /, *arguments, **options) -> Future:
        """Submit a call; arguments and result are pickled, and each node must be able to import the function."""
        resources = {"num_cpus": self._num_cpus, "max_retries": MAX_RETRIES, "retry_exceptions": False}
        task = self._ray.remote(**resources)(function)
        reference = task.remote(*map(self._sent, arguments), **options)
        future = Future()
        future.reference = reference  # Ray ends a task that nothing refers to
        reference.future().add_done_callback(lambda done: self._settle(future, done))
        return future

    def _sent(self, argument):
        if not isinstance(argument, Dataset):
            return argument
        if id(argument) not in self._stored:
            self._stored[id(argument)] = argument, self._ray.put(argument)
        return self._stored[id(argument)][1]

    def _settle(self, future: Future, done: Future) -> None:
        if not future.set_running_or_notify_cancel():
            return
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            future.set_exception(error.cause if isinstance(error.cause, BaseException) else error)
        else:  # a node or worker that died more than MAX_RETRIES times, or the cluster
            reason = " ".join(str(error).split())[:300]
            future.set_exception(ConnectionError(f"Ray lost a call: {reason}; the same command goes on where it was"))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Disconnect from the cluster, or stop it if it is local; running calls are stopped, and `wait` has no effect."""
        self._ray.shutdown()


def _check_answers(address: str) -> None:
    """Check a cluster's health in a separate process, since Ray's own attempts end after minutes, if at all."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"the Ray address is {address!r}; give HOST:PORT, as `ray start --head` prints it, or local")
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS).close()  # most mistakes show at once
        subprocess.run(command, check=True, capture_output=True, timeout=CONNECT_SECONDS)
    except (OSError, OverflowError) as error:
        raise ConnectionError(_no_answer(address, str(error))) from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        reason = "what listens there is no Ray of this version, or its RAY_AUTH_MODE and RAY_AUTH_TOKEN are others"
        raise ConnectionError(_no_answer(address, reason)) from None


def _no_answer(address, reason):
    return f"no Ray cluster answers at {address} ({reason}); start one with `ray start --head`, or give the address it printed"
