import numpy as np
import pytest
import scipy.stats

from factorizenet_tf.analysis.distributions import BINS, CHANNEL_BINS, Distribution, describe


def test_two_channels_by_hand():
    found = describe(np.array([[0.0, -1.0], [1.0, 3.0]], np.float32))
    assert (found.minimum, found.maximum, found.range) == (-1, 3, 4)
    assert found.channel_ranges.tolist() == [1, 4]
    assert found.channel_precisions.tolist() == [0.25, 1]
    row = found.row()
    assert (row["average_channel_precision"], row["mean"]) == (0.625, 0.75)
    assert found.counts.sum() == row["numbers"] == 4
    assert found.counts[1, 0] == found.counts[1, -1] == 1  # -1 and 3 are at the ends
    assert found.counts[0, CHANNEL_BINS // 4] == 1  # 0 lies a quarter of the way


def test_streamed_batches_give_what_all_at_once_gives():
    random = np.random.default_rng(0)
    values = random.normal(2, 3, (5_000, 6)).astype(np.float32)
    streamed, whole = Distribution(6), describe(values)
    for part in np.array_split(values, 7):
        streamed.widen(part)
    for part in np.array_split(values, 3):
        streamed.add(part)
    np.testing.assert_array_equal(streamed.counts, whole.counts)
    np.testing.assert_array_equal(streamed.fine_counts, whole.fine_counts)
    np.testing.assert_allclose(streamed.channel_ranges, np.ptp(values, axis=0), rtol=1e-6)
    assert streamed.row() == pytest.approx(whole.row(), rel=1e-6)


def test_moments_and_percentiles_are_scipys_and_numpys():
    values = np.random.default_rng(1).gamma(2.0, size=(4_000, 2)).astype(np.float32)
    found = describe(values)
    assert found.row()["kurtosis"] == pytest.approx(scipy.stats.kurtosis(values, axis=None, fisher=False), rel=1e-4)
    assert found.row()["std"] == pytest.approx(values.std(), rel=1e-5)
    for percent in (1, 50, 99.9):
        assert np.mean(values <= found.percentile(percent)) == pytest.approx(percent / 100, abs=5e-4)
        assert found.percentile(percent) == pytest.approx(np.percentile(values, percent), abs=10 * found.range / BINS)
    assert found.percentile(100) == values.max()
    assert found.percentile(0) == values.min()


def test_constant_nan_and_infinite_values_are_reported_and_do_not_crash():
    still = describe(np.full((5, 2), 3.0, np.float32)).row()
    assert (still["range"], still["std"], still["not_finite"], still["zero_range_channels"]) == (0, 0, 0, 2)
    assert np.isnan([still["kurtosis"], still["average_channel_precision"]]).all()
    broken = describe(np.array([[1.0, np.nan], [2.0, np.inf], [np.nan, np.nan]], np.float32))
    assert [broken.row()[key] for key in ("not_finite", "minimum", "maximum", "mean")] == [4, 1, 2, 1.5]
    assert np.isnan(broken.channel_ranges[1])
    assert broken.counts.sum() == 2
    nothing = describe(np.full((3, 2), np.nan, np.float32)).row()
    assert (nothing["not_finite"], nothing["zero_range_channels"]) == (6, 0)
    assert np.isnan([nothing[key] for key in ("minimum", "std", "kurtosis", "percentile_range")]).all()
