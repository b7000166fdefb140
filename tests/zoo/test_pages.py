import dataclasses
import sys

import factorizenet_tf as fnet
from factorizenet_tf.zoo.cards import Cards
from factorizenet_tf.zoo.pages import card_page, table_page, write_pages


def test_the_pages_are_what_the_index_gives(zoo):
    cards = fnet.zoo.list(zoo_dir=zoo)
    assert (zoo / "README.md").read_text() == table_page(cards)
    assert {path.stem: path.read_text() for path in (zoo / "cards").iterdir()} == {c.name: card_page(c) for c in cards}
    assert (zoo / "frontier.svg").read_text().startswith("<svg")


def test_the_table_says_how_many_images_its_accuracies_are_of(zoo):
    cards = fnet.zoo.list(zoo_dir=zoo)
    images = cards[1].images
    line = f"Accuracy on {images['validation']:,} validation and {images['test']:,} test images."
    assert table_page(cards).count(line) == 2  # int8 and float
    other = dataclasses.replace(cards[1], images=images | {"validation": 9_000, "test": 10_000})
    assert "test images or 9,000 validation and 10,000 test images." in table_page(Cards([*cards, other]))


def test_the_page_of_a_baseline_names_it_and_no_level(zoo):
    card = dataclasses.replace(fnet.zoo.list(zoo_dir=zoo)[1], spec=fnet.baselines.ResNet8())
    page = card_page(card)
    assert "MLPerf Tiny's ResNet-8" in page
    assert "of depth factorization" not in page


def test_a_page_states_one_thread_and_the_licence_that_the_publisher_gave(zoo):
    card = fnet.zoo.list(zoo_dir=zoo)[1]
    assert "2 threads" not in card_page(dataclasses.replace(card, older={"latency_2_threads_ms": 1.0}))
    assert "The publisher states no licence. Published" in card_page(card)
    assert "Licence of the weights: MIT. Published" in card_page(dataclasses.replace(card, licence="MIT"))


def test_lossy_data_is_said_to_be_lossy(zoo):
    card = fnet.zoo.list(zoo_dir=zoo)[1]
    assert "JPEG" not in card_page(card)
    assert "compares only" in card_page(dataclasses.replace(card, dataset="CIFAR-10 (JPEG)"))


def test_pages_of_models_that_left_are_removed_and_an_empty_zoo_says_so(zoo, tmp_path):
    cards = fnet.zoo.list(zoo_dir=zoo)
    write_pages(tmp_path, cards)
    first = (tmp_path / "frontier.svg").read_bytes()
    write_pages(tmp_path, Cards(cards[1:]))
    assert [path.stem for path in (tmp_path / "cards").iterdir()] == ["fnet-1x2.2x2-l1-x0.5-int8"]
    assert (tmp_path / "frontier.svg").read_bytes() == first  # int8 models only, and the same bytes each time
    assert "None is published yet" in table_page(Cards())


def test_findings_are_named_where_there_are_some(zoo, tmp_path):
    cards = fnet.zoo.list(zoo_dir=zoo)
    write_pages(tmp_path, cards)
    assert "FINDINGS" not in (tmp_path / "README.md").read_text()
    (tmp_path / "FINDINGS.md").touch()
    write_pages(tmp_path, cards)
    assert "[FINDINGS.md](FINDINGS.md)" in (tmp_path / "README.md").read_text()


def test_without_altair_no_older_figure_is_left_to_contradict_the_table(zoo, tmp_path, monkeypatch):
    cards = fnet.zoo.list(zoo_dir=zoo)
    write_pages(tmp_path, cards)
    assert "(frontier.svg)" in (tmp_path / "README.md").read_text()
    monkeypatch.delitem(sys.modules, "factorizenet_tf.plots", raising=False)
    monkeypatch.setitem(sys.modules, "altair", None)  # as if it were not installed
    write_pages(tmp_path, cards)
    assert not (tmp_path / "frontier.svg").exists()
    assert (tmp_path / "README.md").read_text() == table_page(cards, figure=False)
