import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import factorizenet_tf as fnet
from factorizenet_tf.zoo.cards import Card, Cards, index_from_json, index_to_json
from factorizenet_tf.zoo.pages import card_page
from factorizenet_tf.zoo.store import bundled_zoo

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def cards(zoo):
    return fnet.zoo.list(zoo_dir=zoo)


@pytest.fixture(scope="module")
def index(zoo):
    return json.loads((zoo / "index.json").read_text())


def damaged(index, change):
    copy = json.loads(json.dumps(index))
    change(copy)
    return json.dumps(copy)


def parsed(text):
    """The cards of an index, or none and the message."""
    try:
        return index_from_json(text, "here"), ""
    except ValueError as error:
        return (), str(error)


def test_a_card_knows_level_and_width_from_its_spec_and_a_baseline_has_none(cards):
    assert (cards[0].level, cards[0].level_text, cards[0].width) == (1, "1", 8)
    mixed = dataclasses.replace(cards[0], spec=fnet.ModelSpec((0, 2, 2)))
    assert (mixed.level_text, mixed.row()["level"]) == ("0.2.2", "0.2.2")
    baseline = dataclasses.replace(cards[0], spec=fnet.baselines.ResNet8())
    assert (baseline.level, baseline.width, baseline.row()["level"]) == (None, None, None)


def test_cards_print_as_a_table_which_names_zoos_where_there_are_several(cards, zoo):
    lines = repr(cards).splitlines()
    assert sum("fnet-1x2.2x2-l1-x0.5-" in line for line in lines) == 2
    assert str(zoo) not in repr(cards)
    assert {row["zoo"] for row in map(Card.row, cards)} == {str(zoo)}
    assert "elsewhere" in repr(Cards([*cards, dataclasses.replace(cards[0], zoo="elsewhere")]))
    assert repr(Cards()) == "no models"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fnet-1x2.2x2-l1-x0.5-int9",
            r"no model 'fnet-1x2\.2x2-l1-x0\.5-int9' in the zoo; did you mean 'fnet-1x2\.2x2-l1-x0\.5-int8'",
        ),
        ("FNET-1X2.2X2-L1-X0.5-INT8", r"did you mean 'fnet-1x2\.2x2-l1-x0\.5-int8'"),
        ("zzz", r"there are fnet-1x2\.2x2-l1-x0\.5-float, fnet-1x2"),
        ("fnet-1x2.2x2-l1-x0.5-int8@7", r"no version '7'; there are fnet-1x2\.2x2-l1-x0\.5-int8@1"),
        ("../fnet-1x2.2x2-l1-x0.5-int8", "no model"),
        ("https://example.com/fnet-1x2.2x2-l1-x0.5-int8", "no model"),
        ("fnet-1x2.2x2-l1-x0.5-int8/..", "no model"),
        ("", "no model"),
        ("a\0b", "no model"),
    ],
)
def test_an_unknown_name_path_or_address_offers_the_nearest(cards, name, message):
    with pytest.raises(ValueError, match=message):
        cards.find(name)


def test_an_empty_zoo_says_so():
    with pytest.raises(ValueError, match="this zoo is empty"):
        Cards().find("fnet-l1-int8")


def test_cards_survive_the_index(cards, zoo):
    assert index_from_json(index_to_json(cards), "here") == cards
    assert "zoo" not in json.loads(index_to_json(cards))["models"][0]


def test_fields_that_older_entries_have_are_read_and_left():
    text = Path(bundled_zoo() / "index.json").read_text()
    assert "latency_2_threads_ms" in text
    assert index_to_json(index_from_json(text, "here")) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON .*; restore it"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no index"),
        ('{"format": 1}', "is no index"),
        ('{"format": 2, "models": []}', "has format 2; this version reads 1: update"),
        ('{"format": true, "models": []}', "has format True"),
        ('{"format": 1, "models": [3]}', "it is 3, not an object"),
        ('{"format": 1, "models": [{"name": "a"}]}', "the entry 'a' is damaged: the field .* is missing"),
        ('{"format": 1, "models": [NaN]}', "NaN is no JSON number"),
    ],
)
def test_what_is_no_index_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        index_from_json(text, "here")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "../up", "must be of a-z"),
        ("name", 3, "name is 3; it must be of type str"),
        ("precision", "int4", "must be float or int8"),
        ("macs", -1, "macs is -1"),
        ("version", 0, "version is 0; it must be at least 1"),
        ("macs", 1.5, "macs is 1.5"),
        ("macs", True, "macs is True"),
        ("accuracy", 80.5, "must be from 0 to 1"),
        ("accuracies", {"test": {"float": 2}}, "the field 'validation' is missing"),
        ("recipe", {"epochs": -1}, "epochs is -1"),
        ("recipe", {"epoch": 1}, "epoch"),
        ("images", {"test": 3}, "the field 'validation' is missing"),
        ("versions", {"numpy": 2}, "version of numpy is 2"),
        ("class_names", ["a"], "1 class names, its spec 10 classes"),
        ("class_names", ["a", 1], "class_names is 1"),
        ("spec", {"family": "pickle"}, "not a spec"),
        ("spec", {"family": "factorizenet", "level": 99, "width": 16}, "not a spec"),
        ("latency_ms", "fast", "latency_ms is 'fast'"),
        ("licence", 3, "licence is 3"),
        ("input_zero_point", 0.5, "input_zero_point"),
        ("files", {}, "files is"),
        ("files", [], "no file of the role history, weights"),
    ],
)
def test_a_damaged_field_is_named(index, field, value, message):
    text = damaged(index, lambda copy: copy["models"][0].update({field: value}))
    with pytest.raises(ValueError, match=message):
        index_from_json(text, "here")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../a.h5", "models/../../a.h5", "a//b", "C:\\a", "", ".", "models/.x", "a/b/"]
)
def test_a_path_outside_the_folder_is_refused(index, path):
    text = damaged(index, lambda copy: copy["models"][0]["files"][0].update(path=path))
    with pytest.raises(ValueError, match="is not below the zoo's folder"):
        index_from_json(text, "here")


def test_bad_hashes_roles_and_names_twice_are_refused(index):
    for change, message in (
        (lambda copy: copy["models"][0]["files"][0].update(sha256="0" * 63), "64 hexadecimal"),
        (lambda copy: copy["models"][0]["files"][0].update(role="script"), "it must be one of weights"),
        (lambda copy: copy["models"].append(copy["models"][0]), "more than once"),
    ):
        with pytest.raises(ValueError, match=message):
            index_from_json(damaged(index, change), "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(QUICK, max_examples=200)
@given(field=st.sampled_from([field.name for field in dataclasses.fields(Card)]), value=JSON)
def test_any_value_in_any_field_gives_a_card_or_a_clear_error(index, field, value):
    text = damaged(index, lambda copy: copy["models"][1].update({field: value}))
    cards, message = parsed(text)
    assert len(cards) == 2 or message.startswith("here")
    for card in cards:  # what is accepted can be shown
        assert card.name in card_page(card)
        assert card.name in repr(Cards([card])).replace("\n", "")


@settings(QUICK, max_examples=150)
@given(at=st.floats(0, 1, exclude_max=True), noise=st.binary(min_size=1, max_size=4))
def test_bytes_overwritten_anywhere_give_cards_or_a_clear_error(index, at, noise):
    content = bytearray(json.dumps(index).encode())
    start = int(at * len(content))
    content[start : start + len(noise)] = noise
    cards, message = parsed(content.decode(errors="replace"))
    assert len(cards) == 2 or message.startswith("here")
