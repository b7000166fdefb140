"""The one reader of image files, for data, server and predictions, and the one way to another size."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np

__all__ = ["IMAGE_ENDINGS", "fit", "read_image"]

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".pbm"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")  # Pillow's names; PPM is PGM and PBM, too
MAX_PIXELS = 89_478_485  # of one file, Pillow's own threshold for a decompression bomb: 256 MiB as RGB


def read_image(path_or_bytes: str | os.PathLike | bytes, shape: Sequence[int] | None = None) -> np.ndarray:
    """Read an image file as uint8 (height, width, channels), as every part of this package reads one.

    Formats: PNG, JPEG, BMP, WebP, PPM, PGM and PBM. A file with 16 bits a channel, grey or colour, gives its upper 8 bits;
    a palette gives its colours and CMYK becomes RGB; transparency is dropped; the orientation that EXIF asks for is not
    applied; an animation gives its first frame.

    Args:
        path_or_bytes: a file, or its content.
        shape: (height, width, channels) to resize to: bilinear with antialiasing, aspect not kept; 3 channels are RGB,
            1 is its luma (0.299 R + 0.587 G + 0.114 B). None keeps the file's height and width, in RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image of these formats, is truncated or damaged, or has more than MAX_PIXELS pixels.
    """
    from PIL import Image, UnidentifiedImageError

    is_content = isinstance(path_or_bytes, bytes)
    what = f"the image of {len(path_or_bytes):,} bytes" if is_content else f"the image {os.fspath(path_or_bytes)}"
    try:
        with Image.open(io.BytesIO(path_or_bytes) if is_content else path_or_bytes, formats=IMAGE_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}")
            return fit_picture(_in_8_bits(picture), shape or (picture.height, picture.width, 3))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path_or_bytes}") from None
    except UnidentifiedImageError:
        reason = "its first bytes are of none of them"
    except Exception as error:  # each of Pillow's decoders raises its own
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise ValueError(f"{what} is broken or no PNG, JPEG, BMP, WebP or PPM ({reason}); replace or remove it")


def _in_8_bits(picture):
    """A Pillow image whose conversion to L or RGB loses and warns of nothing but transparency."""
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("floating-point pixels")
    return picture.convert("RGBA") if "transparency" in picture.info and picture.mode == "P" else picture


def fit_picture(picture, shape):
    from PIL import Image

    picture = picture.convert("L" if shape[2] == 1 else "RGB")
    if picture.size != (shape[1], shape[0]):
        picture = picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape)


def fit(images, shape):
    """Images uint8 (n, height, width, channels) at another size and channel count, bilinear, aspect not kept."""
    from PIL import Image

    if images.shape[1:] == tuple(shape):
        return images
    images = images[..., 0] if images.shape[3] == 1 else images
    return np.stack([fit_picture(Image.fromarray(image), shape) for image in images])
