import numpy as np

import factorizenet_tf as fnet
from factorizenet_tf._keras import to_float
from factorizenet_tf.training.loop import augment


def test_a_seed_fixes_the_result_and_with_everything_off_images_only_become_floats(noise):
    images, recipe = noise(8), fnet.Recipe()
    first = augment(images, (1, 2), recipe).numpy()
    np.testing.assert_array_equal(first, augment(images, (1, 2), recipe))
    assert (first != augment(images, (1, 3), recipe).numpy()).any()
    nothing = fnet.Recipe(crop_padding=0.0, flip=False, cutout=0.0)
    np.testing.assert_array_equal(augment(images, (1, 2), nothing), to_float(images))


def test_a_crop_is_the_image_moved_by_at_most_the_padding(noise):
    image = 1 + noise(1, (8, 8, 1)) // 2  # no zeros, so that the padding shows
    images = np.repeat(image, 200, 0)
    recipe = fnet.Recipe(crop_padding=0.25, flip=False, cutout=0.0)
    padded = np.pad(image[0, ..., 0], 2)
    places = {padded[y : y + 8, x : x + 8].tobytes(): (y, x) for y in range(5) for x in range(5)}
    floats = np.asarray(augment(images, (0, 0), recipe))[..., 0]
    seen = {places[one.tobytes()] for one in np.round(floats * 255).astype(np.uint8)}
    assert len(seen) > 15
    assert {y for y, _ in seen} == {x for _, x in seen} == {0, 1, 2, 3, 4}


def test_about_half_of_the_images_are_mirrored(noise):
    images = noise(400, (4, 4, 3))
    result = np.round(augment(images, (3, 4), fnet.Recipe(crop_padding=0.0, cutout=0.0)).numpy() * 255)
    mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (result == images).all((1, 2, 3))).all()
    assert 150 < mirrored.sum() < 250


def test_cutout_zeroes_one_square_that_may_leave_the_image():
    images = np.full((300, 16, 16, 3), 255, np.uint8)
    result = augment(images, (5, 6), fnet.Recipe(crop_padding=0.0, flip=False, cutout=0.25)).numpy()
    holes = result == 0
    assert (holes.all(-1) == holes.any(-1)).all()
    rows, columns = holes.any((2, 3)).sum(1), holes.any((1, 3)).sum(1)
    assert (holes[..., 0].sum((1, 2)) == rows * columns).all()
    assert rows.max() == columns.max() == 4
    assert rows.min() >= 2


def test_a_turned_image_keeps_its_distance_from_the_centre_within_the_angle():
    image = np.zeros((200, 17, 17, 1), np.uint8)
    image[:, 7:10, 13:16] = 255  # a spot 6 pixels to the right of the centre
    recipe = fnet.Recipe(crop_padding=0.0, flip=False, rotate=30)
    turned = augment(image, (1, 2), recipe).numpy()[..., 0]
    place = np.indices((17, 17)) - 8
    rows, columns = (np.einsum("nij,ij->n", turned, axis) / turned.sum((1, 2)) for axis in place)
    angles = np.degrees(np.arctan2(rows, columns))
    np.testing.assert_allclose(np.hypot(rows, columns), 6, atol=0.3)
    assert -31 < angles.min() < -20
    assert 20 < angles.max() < 31


def test_brightness_moves_an_images_mean_and_contrast_what_is_around_it():
    images = np.full((200, 4, 4, 1), 128, np.uint8)
    images[:, :2] = 64
    off = {"crop_padding": 0.0, "flip": False}
    bright = augment(images, (1, 2), fnet.Recipe(**off, brightness=0.1)).numpy()
    moved = bright - to_float(images).numpy()
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1, :1], moved.shape), atol=1e-6)
    assert (-0.1 <= moved.min() < -0.08, 0.08 < moved.max() <= 0.1) == (True, True)
    spread = augment(images, (1, 2), fnet.Recipe(**off, contrast=0.5)).numpy()
    np.testing.assert_allclose(spread.mean((1, 2, 3)), 96 / 255, atol=1e-5)
    gaps = (spread[:, 3, 0, 0] - spread[:, 0, 0, 0]) / (64 / 255)
    assert (0.5 <= gaps.min() < 0.6, 1.4 < gaps.max() <= 1.5) == (True, True)


def test_crops_of_published_nets_are_those_of_their_seeds_to_the_bit():
    image = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
    seen = np.round(augment(image, (1, 2), fnet.Recipe()).numpy() * 255).astype(np.uint8)
    assert seen[:, :2, :3, 0].tolist() == [[[1, 2, 3], [9, 10, 11]], [[78, 77, 76], [86, 85, 84]]]
