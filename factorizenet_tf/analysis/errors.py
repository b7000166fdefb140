"""Show the images that nets classify wrongly, float and int8 side by side, in one HTML page that loads nothing."""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np

from ..classes import balanced_accuracy, class_rows, confusion
from ..data import Split

__all__ = ["MAX_BYTES", "errors_html"]

MAX_BYTES = 8_000_000


def errors_html(logits: Mapping[str, np.ndarray], split: Split, class_names: Sequence[str], *, title: str) -> str:
    """Make the page, at most 8 MB: if needed, it shows only the most confident mistakes of each kind.

    Args:
        logits: (n, classes) of the split's images, or probabilities, by net: "float" and "int8", or one of them.
        split: the images and their labels.
        class_names: by number.
        title: of the page.
    """
    template = resources.files(__package__).joinpath("errors.html").read_text(encoding="utf-8")
    classes = {net: scores.argmax(1) for net, scores in logits.items()}
    sureness = {net: _probabilities(scores) for net, scores in logits.items()}
    wrong = {net: found != split.labels for net, found in classes.items()}
    matrices = {net: confusion(found, split.labels, len(class_names)) for net, found in classes.items()}
    both = np.logical_and.reduce([*wrong.values()])
    kinds = {f"{' and '.join(wrong)} wrong": both}
    if len(wrong) > 1:
        kinds |= {f"Only {net} wrong": found & ~both for net, found in reversed(wrong.items())}
    doubt = np.max([np.where(wrong[net], sureness[net].max(1), 0) for net in wrong], axis=0)
    places = {kind: sorted(np.flatnonzero(found), key=lambda i: -doubt[i]) for kind, found in kinds.items()}
    room = MAX_BYTES - 20_000 - 500 * len(class_names)
    total = sum(map(len, places.values()))
    texts = [f"{net}: {found.sum():,} wrong" for net, found in wrong.items()]
    sections = [_table(matrices, class_names)]
    for number, (kind, chosen) in enumerate(places.items()):
        figures, share = [], room // (len(places) - number)  # what a kind leaves the next ones have
        for i in chosen:
            figure = _figure(split.images[i], split.labels[i], {net: s[i] for net, s in sureness.items()}, class_names)
            if len(figure.encode()) > share:
                break
            figures.append(figure)
            share, room = share - len(figure.encode()), room - len(figure.encode())
        shown = "" if len(figures) == len(chosen) else f", the {len(figures):,} surest shown"
        heading = f"<h2>{kind}: {len(chosen):,} images{shown}</h2>"
        sections.append(f'<section>{heading}<div class="images">{"".join(figures)}</div></section>')
    subtitle = f"{len(split):,} images, {total:,} of them wrong somewhere ({', '.join(texts)}). In brackets: softmax."
    parts = {"title": html.escape(title), "subtitle": html.escape(subtitle), "sections": "\n".join(sections)}
    return re.sub(r"@(\w+)@", lambda found: parts[found[1]], template)


def _table(matrices, class_names):
    rows = class_rows(matrices, class_names)
    head = "".join(f"<th>{key.replace('_', ' ')}</th>" for key in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row.values())}</tr>" for row in rows)
    means = ", ".join(f"{net} {balanced_accuracy(matrix):.2%}" for net, matrix in matrices.items())
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    about = f"<p>Balanced accuracy, the mean recall of the classes: {means}.</p>"
    return f'<section><h2>Class by class</h2>{about}<div class="scroll" tabindex="0">{table}</div></section>'


def _cell(value):
    return f"{value:.1%}" if isinstance(value, float) else "-" if value is None else html.escape(str(value))


def _figure(image, label, sureness, class_names):
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(content, "png", optimize=True)
    lines = [f"<b>{html.escape(str(class_names[label]))}</b>"]
    for net, probabilities in sureness.items():
        found = int(probabilities.argmax())
        text = html.escape(f"{net}: {class_names[found]} ({probabilities[found]:.0%})")
        lines.append(text if found == label else f'<span class="wrong">{text}</span>')
    source = base64.b64encode(content.getvalue()).decode()
    return f'<figure><img alt="" src="data:image/png;base64,{source}"><figcaption>{"<br>".join(lines)}</figcaption></figure>'


def _probabilities(scores):
    """Softmax of logits; what is probabilities already stays."""
    if scores.min() >= 0 and np.allclose(scores.sum(1), 1, atol=0.05):
        return scores
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
