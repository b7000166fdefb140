"""The numbers and figures behind zoo/FINDINGS.md: what each level of depth factorization does under quantization.

    python tuner/findings.py runs/levels/fnet-l0 runs/levels/fnet-l2 ... --out findings

Takes names of the zoo or runs' folders, coarse to fine, and analyses them on the data they were trained on (about a
minute a net on 2 cores, `--sensitivity` some more). Writes findings.md (tables and the verdicts that they support),
findings.csv, tables/ (as `Analysis.save`), figures/ and report.html; killed, the same command goes on with the nets that
are missing. Expected: one line a net on stdout, then the path.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import factorizenet_tf as fnet
from factorizenet_tf.analysis import join
from factorizenet_tf.files import write_csv, write_text
from factorizenet_tf.findings import finding_rows, findings_page
from factorizenet_tf.layer_figures import write_figures
from factorizenet_tf.layerwise import analyze_all
from factorizenet_tf.report import report_html


def main() -> None:
    """Parse, analyse, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("nets", nargs="+", help="names of the zoo or runs' folders, coarse to fine")
    parser.add_argument("--zoo", help="zoo folder or address (default: the package's own)")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps its data")
    parser.add_argument("--evaluation-images", type=int, help="validation images (default: all)")
    parser.add_argument("--sensitivity", action="store_true", help="measure it, too")
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
    write_text(arguments.out / "findings.md", findings_page(analysis))
    write_figures(analysis, arguments.out / "figures")
    write_text(arguments.out / "report.html", report_html(analysis))
    print(arguments.out / "findings.md")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
