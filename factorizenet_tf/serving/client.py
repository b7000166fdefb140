"""A client of TensorFlow Serving and of `factorizenet serve`: REST without TensorFlow, gRPC with its protos."""

from __future__ import annotations

import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import numpy as np

from ..data import check_images

__all__ = ["Client", "ServingError"]

RETRIED = (429, 502, 503, 504)
BACKOFF_SECONDS = 0.1


class ServingError(RuntimeError):
    """The server answered that it could not.

    Args:
        status: the HTTP code, or the gRPC one mapped to it: 400 a bad request, 404 no such model, 503 too busy.
        message: the server's.
    """

    def __init__(self, status: int, message: str):
        super().__init__(f"the server answered {status}: {message}")
        self.status = status


class Client:
    """Asks one model of one server; used by one thread.

    Args:
        url: "http://host:8501" (or https) for REST, "grpc://host:8500" for gRPC, which imports TensorFlow for its protos.
        model: its name.
        version: an integer, or None for the server's default.
        label: "stable" or "canary" in the place of a version.
        timeout: seconds that one attempt may take.
        retries: further attempts where the server cannot be reached, is too busy, or takes too long.
        deadline: seconds that a call may take with all its attempts and pauses; None: (retries + 1) * timeout.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 5.0,
        retries: int = 2,
        deadline: float | None = None,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "grpc") or not parts.netloc:
            raise ValueError(f"url is {url!r}; it must be http://host:port, https:// or grpc://host:port")
        if not model or "/" in model or ":" in model:
            raise ValueError(f"model is {model!r}; give a name without slash or colon")
        if version is not None and label is not None:
            raise ValueError("version and label exclude each other; give one")
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}; it must be above 0 seconds")
        if not isinstance(retries, int) or retries < 0:
            raise ValueError(f"retries is {retries!r}; it must be an int of at least 0")
        if deadline is not None and not deadline > 0:
            raise ValueError(f"deadline is {deadline}; it must be above 0 seconds")
        self.model, self.version, self.label = model, version, label
        self.timeout, self.retries = timeout, retries
        self.deadline = (retries + 1) * timeout if deadline is None else deadline
        if parts.scheme == "grpc":
            from .grpc import GrpcTransport

            self._transport = GrpcTransport(parts.netloc)
        else:
            from .rest import RestTransport

            self._transport = RestTransport(url.rstrip("/"))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def predict(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Classify images uint8 (n, height, width, channels).

        Returns:
            logits and probabilities float32 (n, classes), class_id int64 (n,) and class_name, as far as the server
            gives them.

        Raises:
            TypeError, ValueError: the images are no such array.
            ServingError: the server refused; images of another size are its 400.
            ConnectionError: it could not be reached.
            TimeoutError: the deadline passed.
        """
        check_images(images)
        return self._called("predict", images, "serving_default")

    def predict_files(self, contents: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Classify the contents of PNG or JPEG files of any size, which the server decodes. As `predict`."""
        if not contents or not all(isinstance(content, bytes) for content in contents):
            raise TypeError("contents must be a sequence of at least one bytes object, the content of an image file")
        return self._called("predict", list(contents), "serving_bytes")

    def status(self) -> list[dict]:
        """A dict for each version: version, state ("AVAILABLE", ...), status. Raises as `predict`."""
        return self._called("status")

    def metadata(self) -> dict:
        """The signatures, as TensorFlow Serving's JSON has them. Raises as `predict`."""
        return self._called("metadata")

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until a version of the model is available.

        Raises:
            TimeoutError: it was not within `seconds`; the message has the last reason.
        """
        until, reason = time.monotonic() + seconds, "it was not asked"
        while (left := until - time.monotonic()) > 0:
            try:
                states = [version["state"] for version in self._called("status", deadline=min(self.deadline, left))]
                if "AVAILABLE" in states:
                    return
                reason = f"its versions are {', '.join(states) or 'none'}"
            except (ServingError, OSError) as error:
                reason = str(error)
            time.sleep(min(BACKOFF_SECONDS, max(0.0, until - time.monotonic())))
        raise TimeoutError(f"{self.model} was not ready after {seconds:g} s: {reason}")

    def _called(self, what, *arguments, deadline=None):
        deadline = self.deadline if deadline is None else deadline
        until = time.monotonic() + deadline
        pause = BACKOFF_SECONDS
        for attempt in range(self.retries + 1):
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no answer from {self._transport.where} within {round(deadline, 3):g} s")
            try:
                return getattr(self._transport, what)(self, *arguments, timeout=min(self.timeout, left))
            except ServingError as error:
                if error.status not in RETRIED or attempt == self.retries:
                    raise
            except OSError:  # cannot be reached, or took too long
                if attempt == self.retries:
                    raise
            time.sleep(max(0.0, min(pause, until - time.monotonic())))
            pause *= 2
        raise AssertionError("unreachable")
