import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from factorizenet_tf.requirement import Requirement, amount, best, frontier, meets, ranked

ROWS = [
    {"name": "a", "macs": 100, "accuracy": 0.80, "ram_bytes": 10},
    {"name": "b", "macs": 200, "accuracy": 0.85, "ram_bytes": 20},
    {"name": "c", "macs": 300, "accuracy": 0.85, "ram_bytes": None},
    {"name": "d", "macs": 400, "accuracy": 0.90, "ram_bytes": 40},
]
UNKNOWN = [{"name": "e", "macs": 1, "accuracy": missing} for missing in (None, "", math.nan)]


def test_amounts_are_read_as_people_write_them():
    texts = ["12500000", "12_500_000", "12.5e6", "12.5M", "100k", "0.5K", "1g", " 7 "]
    assert [amount(text) for text in texts] == [*[12_500_000] * 4, 100_000, 500, 10**9, 7]


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "0", "12.5", "0.0001k", "many", "nan", "inf", "-2k", "1e999999", "1MB"]
)
def test_what_is_no_amount_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=f"^{re.escape(repr(text))} is no amount; give a whole number .*M or 100k"):
        amount(text)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "nothing is required; give at least one of max_macs=, "),
        ({"max_macs": 0}, "max_macs is 0; it must be above 0"),
        ({"max_ram_bytes": math.nan}, "max_ram_bytes is nan; it must be above 0"),
        ({"max_latency_ms": math.inf}, "max_latency_ms is inf"),
        ({"min_accuracy": 90}, "min_accuracy is 90; it must be above 0 and at most 1"),
        ({"max_latency_ms": "1"}, "max_latency_ms is '1'; it must be a number"),
        ({"max_macs": True}, "max_macs is True; it must be a number"),
        ({"max_macs": np.True_}, "it must be a number"),
    ],
)
def test_a_limit_that_is_none_is_refused(limits, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Requirement(**limits)


@pytest.mark.parametrize("macs", [1000, 1000.0, np.int64(1000), np.uint8(200) * np.float32(5)])
def test_numbers_of_numpy_are_numbers(macs):
    requirement = Requirement(max_macs=macs, min_accuracy=np.float32(0.5))
    assert requirement == Requirement(max_macs=1000, min_accuracy=0.5)
    assert [type(value) for value in (requirement.max_macs, requirement.min_accuracy)] == [int, float]


def test_a_violation_names_cost_and_limit():
    requirement = Requirement(max_macs=10, max_latency_ms=0.5)
    assert requirement.limits == {"macs": 10, "latency_ms": 0.5}
    assert requirement.violation({"macs": 10}) is None
    assert requirement.violation({"macs": 10, "latency_ms": 0.6}) == "over budget: 0.6 latency_ms > 0.5"


def test_a_row_meets_what_it_has_numbers_for():
    assert meets(ROWS[0], None)
    assert meets(ROWS[0], Requirement(max_macs=100, max_ram_bytes=10, min_accuracy=0.8))
    for missing in (None, "", math.nan):
        assert not meets({"ram_bytes": missing}, Requirement(max_ram_bytes=10**9))
    assert not meets({}, Requirement(min_accuracy=0.1))
    card = SimpleNamespace(macs=np.int64(5), validation_accuracy=0.7)
    assert meets(card, Requirement(max_macs=5, min_accuracy=0.7), accuracy="validation_accuracy")


@pytest.mark.parametrize(
    ("requirement", "order", "first"),
    [
        (None, "dbca", "d"),
        (Requirement(max_macs=300), "bcad", "b"),  # of equal accuracy the fewer MACs
        (Requirement(max_macs=99), "dbca", None),
        (Requirement(max_ram_bytes=20), "badc", "b"),  # c has no number
        (Requirement(min_accuracy=0.85), "bcda", "b"),  # those that reach it by MACs, then the rest
        (Requirement(min_accuracy=0.85, max_macs=150), "abcd", None),
        (Requirement(min_accuracy=0.95), "dbca", None),
    ],
)
def test_the_best_and_the_order_under_a_requirement(requirement, order, first):
    rows = [*UNKNOWN, *ROWS]  # those without an accuracy are no answer
    assert "".join(row["name"] for row in ranked(rows, requirement)) == order
    found = best(rows, requirement)
    assert (found and found["name"]) == first


def test_the_frontier_is_best_under_some_limit():
    assert [row["name"] for row in frontier(ROWS)] == ["a", "b", "d"]
    assert [row["name"] for row in frontier(ROWS, "ram_bytes")] == ["a", "b", "d"]
    equal = [{"macs": 1, "accuracy": 0.5}, {"macs": 1, "accuracy": 0.6}, {"macs": 2, "accuracy": 0.6}]
    assert frontier(equal) == equal[1:2]
    assert frontier(UNKNOWN) == []
    assert best(UNKNOWN) is None
