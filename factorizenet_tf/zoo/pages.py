"""Write the pages of a zoo folder from its index: README.md with the table, a page for each model, the frontier figure."""

import json
import re
from pathlib import Path

from ..classes import balanced_accuracy, class_rows, matrix_from_text, mistakes
from ..data.named import NAMED
from ..files import write_text
from ..recipe import Recipe, augmentations
from ..spec import Architecture
from .cards import Card, Cards

__all__ = ["PAGES", "card_page", "table_page", "write_pages"]

PAGES = ("README.md", "cards", "frontier.svg")  # what `write_pages` writes into a zoo's folder
PRECISIONS = {"float": "float", "ptq_per_tensor": "PTQ per tensor", "ptq_per_channel": "PTQ per channel"}
PRECISIONS |= {"qat": "QAT", "tflite": ".tflite"}
OF_A_MODEL = re.compile(r".+-(float|int8)(@\d+)?\.(md|svg)")  # the file names of pages
MAX_CLASSES = 20  # for a whole confusion matrix; of more classes the most frequent mistakes alone are listed
MAX_DRAWN = 100  # classes of a matrix that is drawn
RAM = """\
RAM, bytes (arena recorded by TFLite Micro's x86-64 Python build, tflite-micro, with reference kernels; \
`factorizenet export --micro --kernels` shows what others take)"""
USE = """\
For small devices, for comparing levels of factorization, and as a start for fine-tuning. It knows its classes and
images like its training data, nothing else: an image of anything else gets one of these classes, too. Its logits are
not calibrated probabilities. Not for decisions about people."""
LOSSY = """\
The images it was trained on are JPEG copies (quality 75, 4:2:0) of lossless ones, so its accuracy compares only
with that of others on the same copies."""


def write_pages(zoo: Path, cards: Cards) -> None:
    """Write README.md, cards/*.md and frontier.svg; without the extra `report` no figure, and an older one is removed."""
    newest, figure = cards.newest(), zoo / "frontier.svg"
    try:
        from ..plots import confusion_figure, zoo_frontier

        zoo_frontier(cards, figure)
    except ModuleNotFoundError:
        confusion_figure = None
        figure.unlink(missing_ok=True)
    write_text(zoo / "README.md", table_page(newest, findings=(zoo / "FINDINGS.md").is_file(), figure=figure.is_file()))
    stems = {card.name if card in newest else card.reference: card for card in cards}
    (zoo / "cards").mkdir(exist_ok=True)
    for path in (zoo / "cards").iterdir():
        if path.stem not in stems and OF_A_MODEL.fullmatch(path.name):  # others are somebody's own
            path.unlink()
    for stem, card in stems.items():
        figure = zoo / "cards" / f"{stem}.svg"
        if confusion_figure is None or len(card.class_names) > MAX_DRAWN:
            figure.unlink(missing_ok=True)
        elif card.confusion is not None:
            matrices = {[*card.accuracies][-1]: matrix_from_text(card.confusion)}
            confusion_figure(matrices, card.class_names, figure)
        picture = f"\n![confusion matrix]({figure.name})\n" if figure.is_file() else ""
        write_text(figure.with_suffix(".md"), card_page(card) + picture)


def table_page(cards: Cards, *, findings: bool = False, figure: bool = True) -> str:
    """Write the text of a zoo's README.md, linking FINDINGS.md and frontier.svg if `findings` and `figure` say they exist."""
    if not cards:
        return "# Zoo\n\nPublished models are listed in `index.json`. None is published yet.\n"
    machines = sorted({card.latency_machine for card in cards if card.latency_machine})
    lines = [
        "# Zoo",
        "",
        "Every number is from `index.json`; `factorizenet verify --all` measures them again. Models are ranked by validation",
        "accuracy; test accuracy is for report. RAM is the arena that TensorFlow Lite for Microcontrollers records in its",
        f"x86-64 Python build, with reference kernels. Latency: LiteRT with XNNPACK, one thread, on {'; '.join(machines)}, as a ratio to ResNet-8",
        "int8 in turns.",
        "",
    ]
    if figure:
        lines += ["![accuracy against MACs and bytes](frontier.svg)", ""]
    if findings:
        lines += ["[FINDINGS.md](FINDINGS.md): what each level does to each layer under quantization.", ""]
    for dataset in sorted({card.dataset for card in cards}):
        for precision in ("int8", "float"):
            alike = [card for card in cards if (card.dataset, card.precision) == (dataset, precision)]
            counts = sorted({(card.images["validation"], card.images.get("test", 0)) for card in alike})
            images = [f"{some:,} validation and {f'{test:,}' if test else 'no'} test images" for some, test in counts]
            counted = [f"Accuracy on {' or '.join(images)}.", ""] if images else []
            lines += [f"## {dataset}, {precision}", "", *counted, *_models(alike, precision), ""]
    return "\n".join(lines)


def _models(cards, precision) -> list[str]:
    heads = ["name", "MACs", *(("bytes", "RAM", "latency") if precision == "int8" else ("parameters",)), "validation"]
    heads += [f"test, {name}" for name in PRECISIONS.values()] if precision == "int8" else ["test"]
    rows = []
    for card in cards:
        row = [f"[{card.name}](cards/{card.name}.md)", f"{card.macs:,}"]
        if precision == "int8":
            row += [f"{card.size_bytes:,}", f"{card.ram_bytes:,}", _number(card.latency_ratio, ".2f")]
            accuracies = (card.accuracies.get("test", {}).get(key) for key in PRECISIONS)
        else:
            row.append(f"{card.params:,}")
            accuracies = (card.accuracy,)
        rows.append([*row, *map(_percent, (card.validation_accuracy, *accuracies))])
    return _table(heads, rows)


def card_page(card: Card) -> str:
    """Write the text of a model's page."""
    sections = [_summary(card), _numbers(card), _classes(card), _input_and_output(card), _training(card), _use(card)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _details(stage):
    channels = "" if stage.channels is None else f" and {stage.channels} channels"
    return channels + (" with residual sums" if stage.residual else "")


def _summary(card):
    is_int8 = card.precision == "int8"
    if isinstance(card.spec, Architecture):
        convolutions = sum("Conv2D" in kind for _, kind, *_ in json.loads(card.spec.layers))
        what = f"A net of {convolutions} convolutions whose architecture is plain data in the index; how it came about is below."
    elif card.level is None:
        what = "MLPerf Tiny's ResNet-8, the baseline that everything here is measured against."
    else:
        spec = card.spec
        stages = [f"{stage.blocks} blocks of stride {stage.stride}" + _details(stage) for stage in spec.stages]
        stem = ["stem of stride 2"] * (spec.stem_stride == 2)
        last = [f"{spec.last_channels} channels before the pooling"] * (spec.last_channels is not None)
        what = f"A FactorizeNet at level {card.level_text} of depth factorization, width {card.width} "
        what += f"({', '.join(stem + stages + last)})."
    kind = "float: 32-bit weights and activations."
    if is_int8:
        kind = "int8: a true int8 `.tflite`, and the quantization-aware Keras model that it was converted from."
    load = f'net = fnet.zoo.load("{card.name}", format="{"tflite" if is_int8 else "keras"}")'
    return [f"# {card.name}", "", f"{what} {kind}", "", "```python", "import factorizenet_tf as fnet", "", load, "```"]


def _numbers(card):
    accuracies = [
        (split + kind, f"{card.images[split]:,}", *(_percent(values[key]) for key in PRECISIONS))
        for kind, found in (("", card.accuracies), (", top-5", card.top5 or {}))
        for split, values in found.items()
    ]
    rows = [("MACs", f"{card.macs:,}"), ("parameters", f"{card.params:,}"), ("file, bytes", f"{card.size_bytes:,}")]
    if card.precision == "int8":
        agreement, split = card.agreement, "validation" if card.accuracy is None else "test"
        latency = f"{_number(card.latency_ms, '.3f')} ms, {_number(card.latency_ratio, '.2f')} of ResNet-8's"
        agreed = f"top-1 {_percent(agreement['top1'])}, {_percent(agreement['within_1_lsb'])} of logits within 1 LSB"
        agreed += f", largest {agreement['largest_lsb']} LSB"
        rows += [
            (RAM, f"{card.ram_bytes:,}"),
            (f"LiteRT latency, 1 thread, {card.latency_machine}", latency),
            (f"agreement with QAT Keras on {agreement['images']:,} {split} images", agreed),
            ("operators", ", ".join(card.operators)),
        ]
    tables = [*_table(("split", "images", *PRECISIONS.values()), accuracies), "", *_table(("", ""), rows)]
    return ["## Numbers", "", f"Accuracy on {card.dataset}:", "", *tables]


def _classes(card):
    """Recall and precision of each class, and the confusion matrix; nothing on a card that has none."""
    if card.confusion is None:
        return []
    matrix, names = matrix_from_text(card.confusion), card.class_names
    rows = [map(_cell, row.values()) for row in class_rows({"": matrix}, names)]
    on = f"On the {matrix.sum():,} {[*card.accuracies][-1]} images."
    lines = ["## Classes", "", f"{on} Balanced accuracy, the mean recall of the classes:"]
    lines += [f"{_percent(balanced_accuracy(matrix))}.", "", *_table(("class", "images", "recall", "precision"), rows)]
    if len(names) <= MAX_CLASSES:
        rows = [(name, *map(str, row)) for name, row in zip(names, matrix.tolist())]
        return [*lines, "", "Rows are classes, columns what they were taken for:", "", *_table(("", *names), rows)]
    rows = [map(_cell, row.values()) for row in mistakes(matrix, names)]
    return [*lines, "", "The most frequent mistakes:", "", *_table(("class", "taken for", "images", "share"), rows)]


def _cell(value):
    return "" if value is None else _percent(value) if isinstance(value, float) else str(value)


def _input_and_output(card):
    shape, classes = ", ".join(map(str, card.spec.input_shape)), len(card.class_names)
    if card.precision == "int8":
        lines = [
            f"int8 (batch, {shape}), scale {card.input_scale:.9g} and zero point {card.input_zero_point}: subtract 128 from a uint8 image.",
            f"Out: int8 logits of {classes} classes. `Int8Model.predict` takes uint8 and gives float logits.",
        ]
    else:
        what = f"float32 (batch, {shape}) in 0..1: a uint8 image divided by 255, nothing else."
        lines = [f"{what} Out: logits of {classes} classes."]
    return ["## Input and output", "", *lines, "", f"Classes: {', '.join(card.class_names)}."]


def _training(card):
    recipe = card.recipe
    augmentation = augmentations(Recipe(**recipe))
    return [
        "## How it was trained",
        "",
        "```sh" if card.command.startswith("factorizenet") else "```python",
        card.command,
        "```",
        "",
        f"{recipe['epochs']} float and {recipe['qat_epochs']} QAT epochs, batch {recipe['batch_size']}, SGD with Nesterov momentum {recipe['momentum']},",
        f"learning rate {recipe['learning_rate']} (QAT {recipe['qat_learning_rate']}) down a cosine, weight decay {recipe['weight_decay']}, label smoothing",
        f"{recipe['label_smoothing']}, {augmentation}, seed {recipe['seed']}. {card.training_seconds / 60:.0f} minutes",
        f"of training on {card.training_machine}; the log is `{card.file('history').path}`.",
    ]


def _use(card):
    licence = f"Licence of the weights: {card.licence}" if card.licence else "The publisher states no licence"
    named = NAMED.get(card.dataset_name)
    if named and named.terms:
        licence += f"; the data's terms: {named.terms}"
    packages = ", ".join(f"{name} {number}" for name, number in card.versions.items())
    version = f'Version {card.version}: `load("{card.reference}")` pins it.'
    made = f"{version} {licence}. Published {card.published}, made with {packages}."
    return ["## Use and limits", "", USE, *([LOSSY] if "JPEG" in card.dataset else []), "", made]


def _table(heads, rows) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def _number(value, form):
    return "" if value is None else format(value, form)


def _percent(share):
    return "" if share is None else f"{100 * share:.2f} %"
