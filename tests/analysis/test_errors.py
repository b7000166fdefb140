import re

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.analysis import errors
from factorizenet_tf.analysis.errors import errors_html

# Of four images: right, wrong by both, wrong by int8 alone, wrong by float alone.
LABELS = np.array([0, 1, 0, 1], np.int32)
FLOAT = np.array([[9, 0], [9, 0], [9, 0], [9, 0]], np.float32)
INT8 = np.array([[9, 0], [9, 0], [0, 9], [0, 9]], np.float32)


@pytest.fixture
def split(noise):
    return fnet.Split(noise(4), LABELS)


def test_the_page_has_each_wrong_image_once_under_who_is_wrong_and_loads_nothing(split):
    page = errors_html({"float": FLOAT, "int8": INT8}, split, ("<cat>", "dog @title@"), title="T & U")
    heads = re.findall("<h2>(.*?)</h2>", page)
    assert heads[1:] == ["float and int8 wrong: 1 images", "Only int8 wrong: 1 images", "Only float wrong: 1 images"]
    assert page.count("<img ") == 3
    assert "T &amp; U" in page
    assert "<cat>" not in page
    wrong = '<span class="wrong">int8: dog @title@ (100%)</span>'
    assert f"<b>&lt;cat&gt;</b><br>float: &lt;cat&gt; (100%)<br>{wrong}" in page
    assert "dog 2" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_a_page_with_no_room_shows_the_surest_mistakes_and_says_so(split, monkeypatch):
    monkeypatch.setattr(errors, "MAX_BYTES", 20_000 + 2 * 500 + 1_000)
    unsure = np.array([[1, 0], [1, 0], [9, 0], [9, 0]], np.float32)  # two mistakes: image 1 by little, 3 by much
    page = errors_html({"float": unsure}, split, ("a", "b"), title="T")
    assert "float wrong: 2 images, the 1 surest shown" in page
    assert "a (100%)" in page
    assert "a (73%)" not in page


def test_evaluate_says_which_classes_fail_and_writes_the_page_of_both_nets(run, prints_json, fails, tmp_path):
    out = tmp_path / "errors.html"
    (row,) = prints_json("evaluate", run.folder, "--errors", out)
    assert row["confusion"] == run.metrics["confusion"]["test"]["int8"]
    assert len(row["classes"]) == 10
    assert row["balanced_accuracy"] == pytest.approx(np.mean([c["recall_int8"] for c in row["classes"]]), abs=1e-6)
    assert "float and int8 wrong" in out.read_text()
    assert "is there already" in fails("evaluate", run.folder, "--errors", out)
