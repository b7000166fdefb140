"""Random crops, mirrors and cutouts of a batch, as pure TensorFlow functions that XLA compiles too."""

from __future__ import annotations

from ._keras import tf
from .recipe import Recipe

__all__ = ["augment", "to_float"]


def to_float(images):
    """uint8 images of any shape to float32 in 0..1, what every net here takes."""
    return tf.cast(images, tf.float32) * (1 / 255)


def augment(images, seed, recipe: Recipe):
    """A batch as the net sees it in training.

    Args:
        images: uint8 (batch, height, width, channels), static shape.
        seed: int32 (2,); the same seed gives the same crops (under XLA others, the same each time).
        recipe: `crop_padding`, `flip` and `cutout` are read.

    Returns:
        float32 (batch, height, width, channels) in 0..1.
    """
    batch, height, width, _ = images.shape
    shorter = min(height, width)
    rows, columns, mirrored, holes = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
    padding = round(recipe.crop_padding * shorter)
    if padding:
        images = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
        images = _shifted(images, rows, batch, 1, height, padding)
        images = _shifted(images, columns, batch, 2, width, padding)
    if recipe.flip:
        chosen = tf.random.stateless_uniform((batch, 1, 1, 1), mirrored) < 0.5
        images = tf.where(chosen, images[:, :, ::-1], images)
    side = round(recipe.cutout * shorter)
    if side:
        centre = tf.random.stateless_uniform((2, batch), holes)
        hole = _stripe(centre[0], height, side)[:, :, None] & _stripe(centre[1], width, side)[:, None, :]
        images = tf.where(hole[..., None], tf.zeros((), images.dtype), images)
    return to_float(images)


def _shifted(images, seed, batch, axis, size, padding):
    """Cut `size` rows (axis 1) or columns (axis 2) from a place of each image's own."""
    first = tf.random.stateless_uniform((batch, 1), seed, maxval=2 * padding + 1, dtype=tf.int32)
    return tf.gather(images, first + tf.range(size), axis=axis, batch_dims=1)


def _stripe(centre, size, side):
    """Bool (batch, size): within `side` pixels around a centre in 0..1."""
    start = tf.cast(centre[:, None] * size, tf.int32) - side // 2
    place = tf.range(size)[None, :]
    return (place >= start) & (place < start + side)
