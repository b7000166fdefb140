import dataclasses
import sys

import factorizenet_tf as fnet
from factorizenet_tf.zoo.cards import Cards
from factorizenet_tf.zoo.pages import card_page, table_page, write_pages
from factorizenet_tf.zoo.store import bundled_zoo


def test_the_packages_own_pages_are_what_its_index_gives():
    folder = bundled_zoo()
    cards = fnet.zoo.list(all_versions=True, zoo_dir=folder)
    newest = cards.newest()
    table = table_page(newest, findings=(folder / "FINDINGS.md").is_file())
    assert (folder / "README.md").read_text() == table, "the table is of an older index; run write_pages"
    pages = {f"{card.name if card in newest else card.reference}.md": card_page(card) for card in cards}
    assert {path.name: path.read_text() for path in (folder / "cards").iterdir()} == pages


def test_the_table_says_how_many_images_its_accuracies_are_of(cards):
    images = cards[1].images
    line = f"Accuracy on {images['validation']:,} validation and {images['test']:,} test images."
    assert table_page(cards).count(line) == 2  # int8 and float
    other = dataclasses.replace(cards[1], images=images | {"validation": 9_000, "test": 10_000})
    assert "test images or 9,000 validation and 10,000 test images." in table_page(Cards([*cards, other]))


def test_a_page_says_what_its_card_says(cards):
    card = cards[1]
    page = card_page(card)
    assert "The publisher states no licence. Published" in page
    assert "with reference kernels" in page
    assert "JPEG" not in page
    baseline = card_page(dataclasses.replace(card, spec=fnet.baselines.ResNet8()))
    assert "MLPerf Tiny's ResNet-8" in baseline
    assert "of depth factorization" not in baseline
    assert "2 threads" not in card_page(dataclasses.replace(card, older={"latency_2_threads_ms": 1.0}))
    assert "Licence of the weights: MIT. Published" in card_page(dataclasses.replace(card, licence="MIT"))
    assert "compares only" in card_page(dataclasses.replace(card, dataset="CIFAR-10 (JPEG)"))


def test_pages_of_models_that_left_are_removed_and_findings_named_where_there_are_some(cards, tmp_path):
    write_pages(tmp_path, cards)
    first = (tmp_path / "frontier.svg").read_bytes()
    assert first.startswith(b"<svg")
    (tmp_path / "FINDINGS.md").touch()
    write_pages(tmp_path, Cards(cards[1:]))
    assert [path.stem for path in (tmp_path / "cards").iterdir()] == ["fnet-1x2.2x2-l1-x0.5-int8"]
    assert (tmp_path / "frontier.svg").read_bytes() == first  # int8 models only, and the same bytes each time
    assert "[FINDINGS.md](FINDINGS.md)" in (tmp_path / "README.md").read_text()
    assert "None is published yet" in table_page(Cards())


def test_without_altair_no_older_figure_is_left_to_contradict_the_table(cards, copy, monkeypatch):
    assert "(frontier.svg)" in (copy / "README.md").read_text()
    monkeypatch.delitem(sys.modules, "factorizenet_tf.plots", raising=False)
    monkeypatch.setitem(sys.modules, "altair", None)  # as if it were not installed
    write_pages(copy, cards)
    assert not (copy / "frontier.svg").exists()
    assert (copy / "README.md").read_text() == table_page(cards, figure=False)
