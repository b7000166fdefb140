"""One input, several readers: whatever reads a file of an image sees the same pixels."""

import base64
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from serving_contract import encoded

import factorizenet_tf as fnet
from factorizenet_tf.data import MAX_PIXELS, read_image

Y, X = np.mgrid[0:16, 0:16]
GREY = (16 * Y + X).astype(np.uint8)
RGB = np.stack([GREY, GREY.T, 255 - GREY], 2)
LUMA = np.round(RGB @ [0.299, 0.587, 0.114]).astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 256 + 255  # 16 bits, whose upper 8 are GREY
WHITE = 255 * (GREY > 127).astype(np.uint8)
BITS = Image.fromarray(WHITE).convert("1")
PALETTE = Image.fromarray(GREY).convert("P")
SOME = "as the decoder gives it"
FILES = {  # the content of a file, and what is read from it in grey
    "grey.png": (encoded(GREY), GREY),
    "16-bit-grey.png": (encoded(DEEP), GREY),
    "16-bit-colour.png": (tf.io.encode_png(RGB.astype(np.uint16) * 256 + 255).numpy(), LUMA),
    "colour.png": (encoded(RGB), LUMA),
    "alpha.png": (encoded(np.dstack([RGB, GREY.T])), LUMA),
    "grey-alpha.png": (encoded(np.dstack([GREY, GREY.T])), GREY),
    "palette.png": (encoded(PALETTE), GREY),
    "transparent-palette.png": (encoded(PALETTE, transparency=bytes(range(256))), GREY),
    "colour.bmp": (encoded(RGB, "BMP"), LUMA),
    "colour.webp": (encoded(RGB, "WEBP", lossless=True), LUMA),
    "flat.jpg": (encoded(np.full((16, 16), 90, np.uint8), "JPEG"), np.full((16, 16), 90)),
    "cmyk.jpg": (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), SOME),
    "large.png": (encoded(np.kron(RGB, np.ones((5, 3, 1), np.uint8))), SOME),
    "colour.ppm": (encoded(RGB, "PPM"), LUMA),
    "grey.pgm": (encoded(GREY, "PPM"), GREY),
    "16-bit-grey.pgm": (encoded(DEEP, "PPM"), GREY),
    "1-bit.pbm": (encoded(BITS, "PPM"), WHITE),
}


@pytest.mark.parametrize("name", FILES)
def test_all_readers_see_the_same_pixels(name, models, loaded, post, run, tmp_path, prints_json):
    content, expected = FILES[name]
    image = read_image(content, (16, 16, 1))
    if expected is not SOME:
        np.testing.assert_allclose(image[..., 0], expected, atol=0 if expected is not LUMA else 1)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}-{name}").write_bytes(content)
    with pytest.warns(RuntimeWarning, match="images are in two splits"):
        assert (fnet.load_dataset(tmp_path, input_shape=(16, 16, 1)).train.images == image).all()
    logits = models.int8.predict(image[None])[0]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    rows = prints_json("predict", tmp_path / "a" / f"0-{name}", "--model", run.folder, "--top", 10)
    by_class = sorted((row["class_id"], row["probability"]) for row in rows)
    np.testing.assert_allclose(by_class, list(enumerate(probabilities)), atol=1e-4)
    answer = post({"signature_name": "serving_bytes", "instances": [{"b64": base64.b64encode(content).decode()}]})
    np.testing.assert_allclose(answer.json()["predictions"][0]["logits"], logits, rtol=1e-5)
    signatures = loaded["float"]
    if name.endswith(("ppm", "pgm", "pbm")):  # which TensorFlow's decoder does not know
        with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image file format"):
            signatures["serving_bytes"](image_bytes=tf.constant([content]))
        return
    by_bytes = signatures["serving_bytes"](image_bytes=tf.constant([content]))["probabilities"]
    by_image = signatures["serving_default"](image=tf.constant(image[None]))["probabilities"]
    np.testing.assert_allclose(by_bytes, by_image, atol=0.02 if name == "large.png" else 1e-5)  # resized: within a step


def test_colours_size_and_first_frame_are_the_files_own():
    np.testing.assert_array_equal(read_image(encoded(RGB), (16, 16, 3)), RGB)
    np.testing.assert_array_equal(read_image(encoded(GREY), (16, 16, 3)), np.dstack([GREY] * 3))
    assert read_image(encoded(GREY[:5])).shape == (5, 16, 3)
    assert read_image(encoded(RGB[:5]), (8, 9, 1)).shape == (8, 9, 1)
    frames = [Image.fromarray(frame) for frame in (RGB, 255 - RGB)]
    moving = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(read_image(moving), RGB)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    np.testing.assert_array_equal(read_image(encoded(RGB[:5], exif=exif)), np.rot90(RGB[:5], -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "PPM"])
def test_a_file_that_is_cut_is_refused_by_name(kind, tmp_path):
    whole = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8), kind)
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"the image .*half is broken or no PNG, JPEG.*; replace or remove it"):
        read_image(tmp_path / "half", (16, 16, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the image of 0 bytes is broken or no PNG"),
        (b"GIF89a" + bytes(50), "none of them"),
        (b"Pf\n16 16\n-1.0\n" + bytes(1024), "floating-point pixels"),
        (f"P4\n{MAX_PIXELS + 1} 1\n".encode() + bytes(100), "bytes is too large, more than 89,478,485 pixels; scale"),
        (b"P4\n20000 20000\n" + bytes(100), "bytes is too large, more than 89,478,485 pixels; scale it down"),
        (Path("."), r"\(Is a directory\)"),
        (Path("none"), "no image file none"),
    ],
)
def test_what_is_no_image_and_bombs_are_refused(content, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_image(content, (16, 16, 1))
