"""The one reader of image files, for data, server and predictions, and the one way to another size."""

import contextlib
import hashlib
import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["IMAGE_ENDINGS", "RESIZES", "check_resize", "decoded", "fit", "image_sizes", "read_image"]

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".pbm"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")  # Pillow's names; PPM is PGM and PBM, too
MAX_PIXELS = 89_478_485  # of one file, Pillow's own threshold for a decompression bomb: 256 MiB as RGB
RESIZES = ("stretch", "crop", "pad")
CHUNK = 64  # files that a thread reads at a time
ORIENTATION = 0x0112  # EXIF's tag


def check_resize(resize: str) -> None:
    """Raise ValueError if `resize` is none of `RESIZES`."""
    if resize not in RESIZES:
        raise ValueError(f"resize is {resize!r}; it must be {', '.join(RESIZES[:-1])} or {RESIZES[-1]}")


def read_image(
    path_or_bytes: str | os.PathLike | bytes, shape: Sequence[int] | None = None, resize: str = "stretch"
) -> np.ndarray:
    """Read an image file as uint8 (height, width, channels), as every part of this package reads one.

    Formats: PNG, JPEG, BMP, WebP, PPM, PGM and PBM. A file with 16 bits a channel, grey or colour, gives its upper 8 bits;
    a palette gives its colours and CMYK becomes RGB; transparency is dropped; the image is turned as EXIF's orientation
    asks for; an animation gives its first frame.

    Args:
        path_or_bytes: a file, or its content.
        shape: (height, width, channels) to resize to, bilinear with antialiasing; 3 channels are RGB, 1 is its luma
            (0.299 R + 0.587 G + 0.114 B). None keeps the file's height and width, in RGB.
        resize: "stretch": aspect not kept; "crop": the largest part in the middle that has the shape's aspect; "pad": the
            whole image, with black bars at its sides, or above and below.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image of these formats, is truncated or damaged, or has more than MAX_PIXELS pixels.
    """
    check_resize(resize)
    if isinstance(path_or_bytes, bytes):
        return _read(path_or_bytes, f"the image of {len(path_or_bytes):,} bytes", shape, resize)
    return _read(_content(path_or_bytes), f"the image {os.fspath(path_or_bytes)}", shape, resize)


def _content(path) -> bytes:
    try:
        with open(path, "rb", 0) as file:
            return file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path}; give a path that exists") from None
    except OSError as error:
        raise ValueError(f"the image {path} cannot be read ({error.strerror}); replace or remove it") from None


@contextlib.contextmanager
def _opened(content, what):
    """Give the Pillow image of a file's content, and name the file where it is damaged."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield picture
        return
    except UnidentifiedImageError:
        reason = "its first bytes are of none of them"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{what} is too large, more than {MAX_PIXELS:,} pixels; scale it down") from None
    except Exception as error:  # each of Pillow's decoders raises its own
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise ValueError(f"{what} is broken or no PNG, JPEG, BMP, WebP or PPM ({reason}); replace or remove it")


def _read(content, what, shape, resize):
    from PIL import ImageOps

    with _opened(content, what) as picture:
        picture = _in_8_bits(picture if _orientation(picture) == 1 else ImageOps.exif_transpose(picture))
        return _fit_picture(picture, shape or (picture.height, picture.width, 3), resize)


def _orientation(picture) -> int:
    try:
        return picture.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF is damaged; the pixels may be whole
        return 1


def _in_8_bits(picture):
    """A Pillow image whose conversion to L or RGB loses and warns of nothing but transparency."""
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("floating-point pixels")
    return picture.convert("RGBA") if "transparency" in picture.info and picture.mode == "P" else picture


def _fit_picture(picture, shape, resize):
    from PIL import Image

    mode = "L" if shape[2] == 1 else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)
    size, target = picture.size, (shape[1], shape[0])
    if size != target and resize == "crop":
        scale = min(size[0] / target[0], size[1] / target[1])
        part = [max(1, round(scale * n)) for n in target]
        left, top = ((whole - n) // 2 for whole, n in zip(size, part))
        picture = picture.crop((left, top, left + part[0], top + part[1]))
    if size != target and resize == "pad":
        scale = min(target[0] / size[0], target[1] / size[1])
        part = [max(1, round(scale * n)) for n in size]
        whole = Image.new(picture.mode, target)
        whole.paste(picture.resize(part, Image.Resampling.BILINEAR), tuple((n - m) // 2 for n, m in zip(target, part)))
        picture = whole
    if picture.size != target:
        picture = picture.resize(target, Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape)


def fit(images: np.ndarray, shape: Sequence[int], resize: str = "stretch") -> np.ndarray:
    """Give images uint8 (n, height, width, channels) at another size and channel count, resized as `read_image` does."""
    from PIL import Image

    if images.shape[1:] == tuple(shape):
        return images
    images = images[..., 0] if images.shape[3] == 1 else images
    return np.stack([_fit_picture(Image.fromarray(image), shape, resize) for image in images])


def decoded(paths: Sequence[str], shape: Sequence[int], resize: str) -> Iterator[tuple[np.ndarray, list[str], dict]]:
    """Read files on all cores; yield (images, hashes of the files, errors) chunk by chunk.

    Images are uint8 (n, height, width, channels), black for a broken file; errors are messages by number in the chunk.
    """
    return _on_all_cores(_decode, paths, tuple(shape), resize)


def image_sizes(paths: Sequence[str]) -> Iterator[list[tuple[int, int] | None]]:
    """Read (width, height) of files on all cores, in chunks; None for a broken file."""
    return _on_all_cores(_sizes, paths)


def _on_all_cores(function, paths, *arguments):
    import joblib  # its count knows of a container's limit

    cores, running = joblib.cpu_count(), deque()
    with ThreadPoolExecutor(cores) as pool:  # reading and decoding hold no lock of Python's
        for i in range(0, len(paths), CHUNK):
            running.append(pool.submit(function, paths[i : i + CHUNK], *arguments))
            if len(running) > 2 * cores:  # no more in memory than that, however slowly they are taken
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _decode(paths, shape, resize):
    images, hashes, broken = np.zeros((len(paths), *shape), np.uint8), [""] * len(paths), {}
    for i, path in enumerate(paths):
        try:
            content = _content(path)
            hashes[i] = hashlib.blake2b(content, digest_size=12).hexdigest()
            images[i] = _read(content, f"the image {path}", shape, resize)
        except (ValueError, FileNotFoundError) as error:
            broken[i] = str(error)
    return images, hashes, broken


def _sizes(paths):
    sizes = []
    for path in paths:
        size = None
        with contextlib.suppress(ValueError, FileNotFoundError), _opened(_content(path), path) as picture:
            size = picture.size if _orientation(picture) < 5 else picture.size[::-1]
        sizes.append(size)
    return sizes
