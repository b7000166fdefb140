"""The numbers and figures behind zoo/FINDINGS.md: what each level of depth factorization does under quantization.

    python tuner/findings.py fnet-l0-int8 fnet-l1-int8 ... fnet-l6-int8 --sensitivity --out runs/findings --publish zoo

Takes names of the zoo or runs' folders, coarse to fine, and analyses them on the data they were trained on (one to three
minutes a net on 2 cores, as much again with `--sensitivity`). Writes findings.md (tables, figures and the verdicts that
they support), findings.csv, tables/ (as `Analysis.save`), figures/ and report.html; killed, the same command goes on
with the nets that are missing. `--publish` copies the page to FOLDER/FINDINGS.md, figures and tables (.csv, without the
channels) to FOLDER/findings/. Expected: one line a net on stdout, then the path.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import factorizenet_tf as fnet
from factorizenet_tf.analysis.analyze import analyze_all
from factorizenet_tf.analysis.findings import finding_rows, findings_page
from factorizenet_tf.analysis.layer_figures import write_figures
from factorizenet_tf.analysis.report import report_html
from factorizenet_tf.analysis.tables import join
from factorizenet_tf.files import write_csv, write_text


def main() -> None:
    """Parse, analyse, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("nets", nargs="+", help="names of the zoo or runs' folders, coarse to fine")
    parser.add_argument("--zoo", help="zoo folder or address (default: the package's own)")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps its data")
    parser.add_argument("--evaluation-images", type=int, help="validation images (default: all)")
    parser.add_argument("--sensitivity", action="store_true", help="measure it, too")
    parser.add_argument("--publish", type=Path, help="zoo folder that gets FINDINGS.md and findings/, too")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args()

    analyses = []
    for net in arguments.nets:
        folder = arguments.out / "nets" / Path(net).name
        if not (folder / "analysis.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            analyze_all(
                [net],
                zoo_dir=arguments.zoo,
                data_dir=arguments.data_dir,
                evaluation_images=arguments.evaluation_images,
                sensitivity=arguments.sensitivity,
                verbose=True,
            ).save(folder)
        analyses.append(fnet.load_analysis(folder))
        print(f"{net}: {folder}")
    analysis = join(analyses)
    shutil.rmtree(arguments.out / "tables", ignore_errors=True)
    analysis.save(arguments.out / "tables")
    write_csv(arguments.out / "findings.csv", finding_rows(analysis))
    costs = {name: _costs(net, arguments.zoo) for name, net in zip(analysis.names, arguments.nets)}
    write_text(arguments.out / "findings.md", findings_page(analysis, costs))
    write_figures(analysis, arguments.out / "figures")
    write_text(arguments.out / "report.html", report_html(analysis))
    if arguments.publish is not None:
        page = findings_page(analysis, costs, figures="findings", command=_command(arguments))
        _publish(arguments.out, arguments.publish, page)
    print(arguments.out / "findings.md")


def _command(arguments: argparse.Namespace) -> str:
    """What makes the page again; TFDS's folder is the reader's own."""
    images = [f"--evaluation-images {arguments.evaluation_images}"] if arguments.evaluation_images else []
    more = ["--sensitivity"] if arguments.sensitivity else []
    nets = " ".join(arguments.nets)
    return " ".join(["python tuner/findings.py", nets, *images, *more, "--out runs/findings --publish zoo"])


def _costs(net: str, zoo: str | None) -> dict:
    """What a net costs and its int8 validation accuracy, from its card or its run."""
    if (Path(net) / "metrics.json").is_file():
        run = fnet.load_run(net)
        found = {key: run.metrics[key] for key in ("macs", "size_bytes")} | {"ram_bytes": None, "latency_ms": None}
        images = run.metrics["images"]["validation"]
        return found | {"accuracy": run.metrics["accuracy"]["validation"]["tflite"], "images": images}
    card = fnet.zoo.card(net, zoo_dir=zoo)
    found = {key: getattr(card, key) for key in ("macs", "size_bytes", "ram_bytes", "latency_ms")}
    return found | {"accuracy": card.validation_accuracy, "images": card.images["validation"]}


def _publish(out: Path, zoo: Path, page: str) -> None:
    """FINDINGS.md of a zoo, and its figures and tables in a folder beside it."""
    folder = zoo / "findings"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tables = [path for path in (out / "tables").glob("*.csv") if path.stem != "channels"]
    for path in (out / "findings.csv", *tables, *(out / "figures").glob("*.png")):
        shutil.copy(path, folder / path.name)
    write_text(zoo / "FINDINGS.md", page)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
