"""The pages of a zoo folder, all from its index: README.md with the table, a page a model, the frontier figure."""

from __future__ import annotations

from pathlib import Path

from ..files import write_text
from .cards import Card, Cards

__all__ = ["card_page", "table_page", "write_pages"]

NAMES = {
    "float": "float",
    "ptq_per_tensor": "PTQ per tensor",
    "ptq_per_channel": "PTQ per channel",
    "qat": "QAT",
    "tflite": ".tflite",
}


def write_pages(zoo: Path, cards: Cards) -> None:
    """Write README.md, cards/*.md and frontier.svg; without the extra `report` no figure, and an older one is removed."""
    newest = cards.newest()
    figure = zoo / "frontier.svg"
    try:
        from ..plots import zoo_frontier

        zoo_frontier(newest, figure)
    except ModuleNotFoundError:
        figure.unlink(missing_ok=True)
    write_text(
        zoo / "README.md",
        table_page(newest, findings=(zoo / "FINDINGS.md").is_file(), figure=figure.is_file()),
    )
    pages = {f"{card.name if card in newest else card.reference}.md": card_page(card) for card in cards}
    (zoo / "cards").mkdir(exist_ok=True)
    for stale in (zoo / "cards").glob("*.md"):
        if stale.name not in pages:
            stale.unlink()
    for name, text in pages.items():
        write_text(zoo / "cards" / name, text)


def table_page(cards: Cards, *, findings: bool = False, figure: bool = True) -> str:
    """README.md of a zoo; `findings`, `figure`: whether FINDINGS.md and frontier.svg are there, to be named and shown."""
    if not cards:
        return "# Zoo\n\nPublished models are listed in `index.json`. None is published yet.\n"
    machines = sorted({card.latency_machine for card in cards if card.latency_machine})
    lines = [
        "# Zoo",
        "",
        "Every number is from `index.json`; `factorizenet verify --all` measures them again. Models are ranked by validation",
        "accuracy; test accuracy is for report. RAM is the arena that TensorFlow Lite for Microcontrollers records in its",
        f"x86-64 Python build. Latency: LiteRT with XNNPACK, on {'; '.join(machines)}, as a ratio to ResNet-8 int8 in turns.",
        "",
    ]
    if figure:
        lines += ["![accuracy against MACs](frontier.svg)", ""]
    if findings:
        lines += ["[FINDINGS.md](FINDINGS.md): what each level does to each layer under quantization.", ""]
    for dataset in sorted({card.dataset for card in cards}):
        alike = [card for card in cards if card.dataset == dataset]
        lines += [f"## {dataset}, int8", "", *_section([c for c in alike if c.precision == "int8"], _int8_table), ""]
        lines += [f"## {dataset}, float", "", *_section([c for c in alike if c.precision == "float"], _float_table), ""]
    return "\n".join(lines)


def _section(cards, table) -> list[str]:
    """A table, and above it how many images its accuracies were measured on."""
    counts = sorted({(card.images["validation"], card.images["test"]) for card in cards})
    images = " or ".join(f"{validation:,} validation and {test:,} test images" for validation, test in counts)
    return [*([f"Accuracy on {images}.", ""] if images else []), *table(cards)]


def _int8_table(cards) -> list[str]:
    rows = [
        (
            f"[{c.name}](cards/{c.name}.md)",
            f"{c.macs:,}",
            f"{c.size_bytes:,}",
            _number(c.ram_bytes, ","),
            _number(c.latency_ratio, ".2f"),
            _number(c.latency_2_threads_ratio, ".2f"),
            f"{100 * c.validation_accuracy:.2f} %",
            *(f"{100 * c.accuracies['test'][key]:.2f} %" for key in NAMES),
        )
        for c in cards
    ]
    heads = (
        "name",
        "MACs",
        "bytes",
        "RAM",
        "latency",
        "2 threads",
        "validation",
        *(f"test, {n}" for n in NAMES.values()),
    )
    return _table(heads, rows)


def _float_table(cards) -> list[str]:
    rows = [
        (
            f"[{c.name}](cards/{c.name}.md)",
            f"{c.macs:,}",
            f"{c.params:,}",
            f"{100 * c.validation_accuracy:.2f} %",
            f"{100 * c.accuracy:.2f} %",
        )
        for c in cards
    ]
    return _table(("name", "MACs", "parameters", "validation", "test"), rows)


def card_page(card: Card) -> str:
    """A model's page."""
    height, width, channels = card.spec.input_shape
    is_int8 = card.precision == "int8"
    if card.level is None:
        what = "MLPerf Tiny's ResNet-8, the baseline that everything here is measured against."
    else:
        level = ".".join(map(str, card.level)) if isinstance(card.level, tuple) else card.level
        stages = ", ".join(f"{s.blocks} blocks of stride {s.stride}" for s in card.spec.stages)
        what = f"A FactorizeNet at level {level} of depth factorization, width {card.width} ({stages})."
    kind = (
        "int8: a true int8 `.tflite`, and the quantization-aware Keras model that it was converted from."
        if is_int8
        else "float: 32-bit weights and activations."
    )
    recipe = card.recipe
    agreement = card.agreement
    lines = [
        f"# {card.name}",
        "",
        f"{what} {kind}",
        "",
        "```python",
        "import factorizenet_tf as fnet",
        "",
        f'net = fnet.zoo.load("{card.name}", format="{"tflite" if is_int8 else "keras"}")',
        "```",
        "",
        "## Numbers",
        "",
        f"Accuracy on {card.dataset}:",
        "",
        *_table(
            ("split", "images", *NAMES.values()),
            [
                (split, f"{card.images[split]:,}", *(f"{100 * values[key]:.2f} %" for key in NAMES))
                for split, values in card.accuracies.items()
            ],
        ),
        "",
    ]
    numbers = [
        ("MACs", f"{card.macs:,}"),
        ("parameters", f"{card.params:,}"),
        ("file, bytes", f"{card.size_bytes:,}"),
    ]
    if is_int8:
        numbers += [
            ("RAM, bytes (arena recorded by TFLite Micro's x86-64 Python build, tflite-micro)", f"{card.ram_bytes:,}"),
            (
                f"LiteRT latency, 1 thread, {card.latency_machine}",
                f"{_number(card.latency_ms, '.3f')} ms, {_number(card.latency_ratio, '.2f')} of ResNet-8's",
            ),
            (
                "the same, 2 threads",
                f"{_number(card.latency_2_threads_ms, '.3f')} ms, {_number(card.latency_2_threads_ratio, '.2f')}",
            ),
            (
                f"agreement with QAT Keras on {agreement['images']:,} test images",
                f"top-1 {100 * agreement['top1']:.2f} %, {100 * agreement['within_1_lsb']:.2f} % of logits within 1 LSB, "
                f"largest {agreement['largest_lsb']} LSB",
            ),
            ("operators", ", ".join(card.operators)),
        ]
    lines += [*_table(("", ""), numbers), "", "## Input and output", ""]
    if is_int8:
        lines += [
            f"int8 (batch, {height}, {width}, {channels}), scale {card.input_scale:.9g} and zero point {card.input_zero_point}: subtract 128 from a uint8 image.",
            f"Out: int8 logits of {len(card.class_names)} classes. `Int8Model.predict` takes uint8 and gives float logits.",
        ]
    else:
        lines += [
            f"float32 (batch, {height}, {width}, {channels}) in 0..1: a uint8 image divided by 255, nothing else. Out: logits of {len(card.class_names)} classes.",
        ]
    lines += [
        "",
        f"Classes: {', '.join(card.class_names)}.",
        "",
        "## How it was trained",
        "",
        "```sh" if card.command.startswith("factorizenet") else "```python",
        card.command,
        "```",
        "",
        f"{recipe['epochs']} float and {recipe['qat_epochs']} QAT epochs, batch {recipe['batch_size']}, SGD with Nesterov momentum {recipe['momentum']},",
        f"learning rate {recipe['learning_rate']} (QAT {recipe['qat_learning_rate']}) down a cosine, weight decay {recipe['weight_decay']}, label smoothing",
        f"{recipe['label_smoothing']}, random crops{', flips' if recipe['flip'] else ''}{', cutout' if recipe['cutout'] else ''}, seed {recipe['seed']}. {card.training_seconds / 60:.0f} minutes",
        f"of training on {card.training_machine}; the log is `{card.file('history').path}`.",
        "",
        "## Use and limits",
        "",
        "For small devices, for comparing levels of factorization, and as a start for fine-tuning. It knows its classes and",
        "images like its training data, nothing else: an image of anything else gets one of these classes, too. Its logits are",
        "not calibrated probabilities. Not for decisions about people.",
    ]
    if "JPEG" in card.dataset:
        lines += [
            "The images it was trained on are JPEG copies (quality 75, 4:2:0) of lossless ones, so its accuracy compares only",
            "with that of others on the same copies.",
        ]
    lines += [
        "",
        f'Version {card.version}: `load("{card.reference}")` pins it. Licence of the weights: {card.licence}. Published {card.published}, made with '
        + ", ".join(f"{name} {number}" for name, number in card.versions.items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def _table(heads, rows) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def _number(value, form):
    return "" if value is None else format(value, form)
