import numpy as np
import pytest

from factorizenet_tf.classes import balanced_accuracy, balanced_weights, class_rows, confusion, lowest_recall, mistakes
from factorizenet_tf.classes import matrix_from_text as from_text
from factorizenet_tf.classes import matrix_to_text as to_text
from factorizenet_tf.plots import confusion_figure

LABELS = np.array([0, 0, 0, 0, 1, 1], np.int32)
PREDICTED = np.array([0, 0, 0, 1, 1, 0])
MATRIX = np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]])  # rows by label; the third class has no images


def test_a_confusion_matrix_counts_labels_by_rows_and_comes_back_from_its_text():
    np.testing.assert_array_equal(confusion(PREDICTED, LABELS, 3), MATRIX)
    assert to_text(MATRIX) == ["3 1 0", "1 1 0", "0 0 0"]
    np.testing.assert_array_equal(from_text(to_text(MATRIX)), MATRIX)
    with pytest.raises(ValueError, match=r"is \(1, 2\); it must be \(classes, classes\)"):
        from_text(["1 2"])


def test_recall_and_precision_are_shares_of_a_row_and_a_column_and_absent_without_images():
    rows = class_rows({"int8": MATRIX}, ("a", "b", "c"))
    assert [tuple(row.values()) for row in rows] == [("a", 4, 0.75, 0.75), ("b", 2, 0.5, 0.5), ("c", 0, None, None)]
    assert balanced_accuracy(MATRIX) == (0.75 + 0.5) / 2  # accuracy itself is 4 of 6


def test_the_most_frequent_mistakes_come_first():
    rows = mistakes(np.array([[3, 1, 0], [2, 1, 0], [0, 0, 5]]), ("a", "b", "c"))
    assert [tuple(row.values()) for row in rows] == [("b", "a", 2, pytest.approx(2 / 3)), ("a", "b", 1, 0.25)]


def test_the_class_of_the_lowest_recall_is_said_unless_nothing_is_wrong():
    said = "balanced accuracy 62.5 %; the lowest recall: class b, 50.0 %, most often taken for a"
    assert lowest_recall(MATRIX, ("a", "b", "c")) == said
    assert lowest_recall(np.diag([3, 1, 0]), ("a", "b", "c")) == "balanced accuracy 100.0 %"


def test_balanced_weights_make_each_class_count_alike_and_leave_the_mean_as_it_is():
    weights = balanced_weights(LABELS, 3)  # four of class 0, two of class 1, none of class 2
    np.testing.assert_allclose(weights[:2], [6 / (4 * 2), 6 / (2 * 2)])
    assert weights[LABELS].mean() == pytest.approx(1)


def test_a_matrix_of_many_classes_is_drawn(tmp_path):
    confusion_figure({"int8": np.ones((72, 72), int)}, range(72), tmp_path / "of_72.svg")  # 5,184 cells
    assert "taken for" in (tmp_path / "of_72.svg").read_text()
