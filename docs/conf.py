"""How Sphinx builds the documentation: ``tox -e docs``, into ``docs/_build/html``.

The pages are Markdown that reads on a code host as well; the reference is made from the
docstrings.  Nothing is fetched: no intersphinx, no fonts, no external links checked.
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
# A reference to a page or a heading that is not there is an error (-n -W).
nitpicky = True
# But for the standard library, whose documentation would have to be fetched.
nitpick_ignore_regex = [(r"py:class", r"(collections\.abc|os)\.\w+")]

# Headings down to the third level can be linked to, by the names that code hosts give them.
myst_heading_anchors = 3

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
# The fonts of the reader's own system.
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#a3204a", "color-brand-content": "#a3204a"},
    "dark_css_variables": {"color-brand-primary": "#e58aa8", "color-brand-content": "#e58aa8"},
}

# Pages of the contents that a checkout may lack.
OPTIONAL = ("examples/*",)


def adapt(app: Sphinx, name: str, source: list[str]) -> None:
    """Take out of the contents what there are no pages of; the README is the index here."""
    index = "../" * name.count("/") + "index.md"
    source[0] = re.sub(r"\]\((\.\./)+README\.md(#[^)]*)?\)", f"]({index})", source[0])
    if name == "index":
        for page in OPTIONAL:
            if not list(Path(app.srcdir).glob(f"{page}.md")):
                source[0] = source[0].replace(f"\n{page}\n", "\n")


def setup(app: Sphinx) -> None:
    """Register what stands here."""
    app.connect("source-read", adapt)
