"""How Sphinx builds the documentation: ``tox -e docs``, into ``docs/_build/html``.

The pages are Markdown that code hosts render as well; the API reference comes from the
docstrings.  The build does not use the network: no intersphinx, fonts, or link checks.
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_setup = configparser.ConfigParser()
_setup.read(ROOT / "setup.cfg")

project = "apachews"
author = "the authors of apachews"
project_copyright = author
version = release = _setup["metadata"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "README.md", "requirements.txt"]
# A reference to a missing page or heading is an error (-n -W).
nitpicky = True
# Except for the standard library, whose documentation is not fetched.
nitpick_ignore_regex = [
    (r"py:class", r"(collections\.abc|os|concurrent\.futures\._base)\.\w+(\[\w+)?")
]

# Links may name headings down to the fourth level, as code hosts name them.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
# 0o660, not 432.
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}

python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"apachews {version}"
html_copy_source = False
html_show_sphinx = False
# The theme uses the fonts of the reader's system.
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#a3204a", "color-brand-content": "#a3204a"},
    "dark_css_variables": {"color-brand-primary": "#e58aa8", "color-brand-content": "#e58aa8"},
}


def link_readme_to_index(app: Sphinx, name: str, source: list[str]) -> None:
    """Replace links to README.md, which Sphinx does not read, by links to the index."""
    index = "../" * name.count("/") + "index.md"
    source[0] = re.sub(r"\]\((\.\./)+README\.md(#[^)]*)?\)", f"]({index})", source[0])


def setup(app: Sphinx) -> None:
    """Connect the handlers of this file."""
    app.connect("source-read", link_readme_to_index)
