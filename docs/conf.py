"""The documentation site: `make docs`. Its source is the whole checkout, so that a page's links are right here and on the site."""

import re

import factorizenet_tf

project = "factorizenet_tf"
version = release = factorizenet_tf.__version__
copyright = "the factorizenet_tf contributors, Apache-2.0"
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/*.rst",
    "notebooks/*.ipynb",
    "zoo/*.md",
    "zoo/cards/*.md",
    "tuner/results/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [
    ".*",
    "docs/_build",
    "runs",
    "site",
    "build",
    "dist",
    "tests",
    "factorizenet_tf",
    "**/.ipynb_checkpoints",
]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
# A notebook runs when it or its own output changed; what an earlier build gave is kept.
nb_execution_mode = "cache"
nb_execution_cache_path = "docs/_build/jupyter_cache"
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say shapes and units; the signature stays readable
default_role = "code"

html_theme = "pydata_sphinx_theme"
html_context = {"default_mode": "auto"}
html_favicon = "_static/logo.svg"
html_sidebars = {f"docs/{page}": [] for page in ("quickstart", "concepts", "api", "faq")}
html_title = "factorizenet_tf"
html_static_path = ["_static"]
html_extra_path = ["_root"]  # a page at / that leads to docs/
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"image_light": "_static/logo.svg", "image_dark": "_static/logo.svg", "text": "factorizenet_tf"},
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def setup(app):
    """Let docstrings say `tf.data.Dataset`s, which reStructuredText takes for no end of the quotation."""

    def end_quotations(app, what, name, obj, options, lines):
        ended = re.sub(
            r"(`[^`]+`)(\w?)", lambda found: found[1] + ("\\ " + found[2]) * bool(found[2]), "\n".join(lines)
        )
        lines[:] = ended.split("\n")

    app.connect("autodoc-process-docstring", end_quotations)
