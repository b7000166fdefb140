"""Measure how a net confuses classes: confusion matrix, recall and precision of each class, balanced accuracy."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

__all__ = ["balanced_accuracy", "balanced_weights", "class_rows", "confusion", "lowest_recall", "matrix_from_text"]
__all__ += ["matrix_to_text", "mistakes"]


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Count how often each class is predicted as each: int (classes, classes), rows by label, columns by prediction.

    `predicted` and `labels` are class numbers, int (n,).
    """
    places = num_classes * labels.astype(np.int64) + predicted
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


def matrix_to_text(matrix: np.ndarray) -> list[str]:
    """Write a confusion matrix as metrics.json and cards have it: a string for each row, "98 0 2"."""
    return [" ".join(map(str, row)) for row in matrix.tolist()]


def matrix_from_text(rows: Iterable[str]) -> np.ndarray:
    """Read what `matrix_to_text` wrote. Raises ValueError if it is no square matrix of counts."""
    matrix = np.array([[int(number) for number in row.split(" ")] for row in rows])
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.min() < 0:
        raise ValueError(f"a confusion matrix is {matrix.shape}; it must be (classes, classes), of counts")
    return matrix


def recalls(matrix: np.ndarray) -> np.ndarray:
    """Compute each class's recall: the share of its images predicted as it, float (classes,); NaN if it has no images."""
    return _shares(matrix, matrix.sum(1))


def precisions(matrix: np.ndarray) -> np.ndarray:
    """Compute each class's precision: the share of the images predicted as it that are its own, NaN if there are none."""
    return _shares(matrix, matrix.sum(0))


def balanced_accuracy(matrix: np.ndarray) -> float:
    """Compute the mean recall of the classes that have images, 0..1, so that rare classes count as much as others."""
    return float(np.nanmean(recalls(matrix)))


def lowest_recall(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Say in a line the balanced accuracy, and which class has the lowest recall and what it is most often taken for."""
    label = int(np.nanargmin(shares := recalls(matrix)))
    text = f"balanced accuracy {100 * balanced_accuracy(matrix):.1f} %"
    if shares[label] == 1:
        return text
    taken = np.argmax(np.where(np.arange(len(matrix)) == label, 0, matrix[label]))
    text += f"; the lowest recall: class {class_names[label]}, {100 * shares[label]:.1f} %"
    return f"{text}, most often taken for {class_names[taken]}"


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Weigh classes inversely to their number of images, float (classes,); the mean weight of the images is 1.

    `labels` are class numbers, int (n,).
    """
    counts = np.bincount(labels, minlength=num_classes)
    return len(labels) / (np.maximum(counts, 1) * np.count_nonzero(counts))


def class_rows(matrices: Mapping[str, np.ndarray], class_names: Sequence[str]) -> list[dict]:
    """Make a dict for each class: its number of images, and each net's recall and precision, None if undefined.

    Args:
        matrices: confusion matrices of the same images by net, e.g. "int8"; the keys end in that name, "recall_int8".
        class_names: by number.
    """
    columns = {"images": next(iter(matrices.values())).sum(1).tolist()}
    for net, matrix in matrices.items():
        for key, shares in (("recall", recalls(matrix)), ("precision", precisions(matrix))):
            columns[f"{key}_{net}"] = [None if np.isnan(share) else round(float(share), 6) for share in shares]
    rows = zip(*columns.values())
    return [{"class": name} | dict(zip(columns, row)) for name, row in zip(class_names, rows)]


def mistakes(matrix: np.ndarray, class_names: Sequence[str], most: int = 10) -> list[dict]:
    """List the most frequent mistakes, at most `most`: "class", "taken_for", "images", and their share of the class."""
    wrong, totals = matrix - np.diag(np.diag(matrix)), matrix.sum(1)
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:most]:
        label, other = np.unravel_index(place, matrix.shape)
        if count := int(wrong[label, other]):
            names = {"class": class_names[label], "taken_for": class_names[other]}
            rows.append(names | {"images": count, "share": float(count / totals[label])})
    return rows


def _shares(matrix, totals):
    return np.where(totals > 0, np.diag(matrix) / np.maximum(totals, 1), np.nan)
