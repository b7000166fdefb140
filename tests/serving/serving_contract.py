"""What whoever serves a net keeps: TensorFlow Serving over an exported version, and `factorizenet serve`, begun here."""

import contextlib
import io
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

PATIENCE = 60  # seconds for a server to stop on a busy machine


@contextlib.contextmanager
def served(*arguments):
    """`factorizenet serve` on a free port until the block ends: its process, address, port and first model's name."""
    command = [sys.executable, "-m", "factorizenet_tf.cli", "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            line = process.stdout.readline()
            match = re.match(r"(http://127\.0\.0\.1:(\d+))/v1/models/([^:]+): int8 LiteRT, \d+ classes", line)
            assert match, f"the server said {line!r}"
            yield SimpleNamespace(process=process, url=match[1], port=int(match[2]), model=match[3])
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0


def encoded(pixels, kind="PNG", **options):
    """The content of a file of an array's or a Pillow image's pixels."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.squeeze(pixels))
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def check_contract(ask, images, refusal):
    """Ask for images uint8 (n, height, width, channels), right and wrong; give the logits.

    Args:
        ask: a function of a signature's name and what its input holds: an array, or a list of files' contents. It gives
            arrays by name.
        refusal: the exception of what is wrong.
    """
    answer = ask("serving_default", images)
    logits, probabilities = answer["logits"], answer["probabilities"]
    assert set(answer) == {"logits", "probabilities", "class_id", "class_name"}
    assert logits.shape == probabilities.shape
    assert {len(value) for value in answer.values()} == {len(images)}
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(probabilities, exponentials / exponentials.sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(answer["class_id"], logits.argmax(1))
    assert [str(number) for number in answer["class_id"]] == [str(name) for name in answer["class_name"]]  # digits
    by_bytes = ask("serving_bytes", [encoded(image) for image in images])
    assert set(by_bytes) == set(answer)
    np.testing.assert_allclose(by_bytes["logits"], logits, atol=1e-3)
    for wrong in (images[:, 1:], np.repeat(images, 2, axis=3)):
        with pytest.raises(refusal):
            ask("serving_default", wrong)
    for wrong in (b"", b"no image", encoded(images[0])[:40]):
        with pytest.raises(refusal):
            ask("serving_bytes", [wrong])
    return logits
