"""What every server of an exported net keeps, whoever wrote it."""

import io

import numpy as np
import pytest
from PIL import Image

from factorizenet_tf.serving.client import Client, ServingError

PATIENCE = 60  # seconds for a server to load the model
MODES = {1: "L", 3: "RGB"}


def check_contract(model, *urls):
    """Ask a model at each address, REST or gRPC, right and wrong; all answer alike."""
    first, *others = [_check(url, model) for url in urls]
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-3)


def _check(url, model):
    with Client(url, model, timeout=20) as client:
        client.wait_until_ready(PATIENCE)
        images = np.random.default_rng(0).integers(0, 256, (4, *_image_shape(client)), np.uint8)
        found = client.predict(images)
        _check_answer(found, len(images))
        by_bytes = client.predict_files([_png(image) for image in images])
        assert set(by_bytes) == set(found)
        for name in ("logits", "probabilities"):
            np.testing.assert_allclose(by_bytes[name], found[name], atol=1e-3)
        for name in ("class_id", "class_name"):
            np.testing.assert_array_equal(by_bytes[name], found[name])
        for wrong in (images[:, 1:], np.repeat(images, 2, axis=3)):
            assert _refused(client.predict, wrong) == 400
        for wrong in (b"no image", _png(images[0])[:40]):
            assert _refused(client.predict_files, [wrong]) == 400
        newest = max(int(one["version"]) for one in client.status())
    for name, version in (("no-such-model", None), (model, newest + 1)):
        with Client(url, name, version=version, timeout=20) as client:
            for call, *arguments in ((client.predict, images), (client.status,), (client.metadata,)):
                assert _refused(call, *arguments) == 404
    return found["logits"]


def _image_shape(client):
    told = client.metadata()["signature_def"]["signature_def"]["serving_default"]["inputs"]["image"]
    batch, *shape = (int(dim["size"]) for dim in told["tensor_shape"]["dim"])
    assert (told["dtype"], batch, len(shape)) == ("DT_UINT8", -1, 3)
    return shape


def _check_answer(found, count):
    assert set(found) == {"logits", "probabilities", "class_id", "class_name"}
    assert found["logits"].shape == found["probabilities"].shape
    assert {len(value) for value in found.values()} == {count}
    assert np.isfinite(found["logits"]).all()
    assert (found["probabilities"] >= 0).all()
    np.testing.assert_allclose(found["probabilities"].sum(1), 1, atol=1e-4)
    np.testing.assert_array_equal(found["class_id"], found["logits"].argmax(1))
    assert found["class_name"].dtype.kind == "U"
    assert all(found["class_name"])


def _png(image):
    file = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    assert picture.mode == MODES[image.shape[-1]]
    picture.save(file, "PNG")
    return file.getvalue()


def _refused(call, *arguments):
    with pytest.raises(ServingError) as caught:
        call(*arguments)
    return caught.value.status
