"""How Sphinx builds these pages: `sphinx-build -W -n docs OUT`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

import prune_jax as pj
from prune_jax.pruning.options import declared

project = "prune_jax"
author = "the authors of prune_jax"
project_copyright = author
release = version = pj.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "literal"  # what docstrings put between single backticks
html_theme = "furo"
html_title = f"prune_jax {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # as lists: an entry may name several arguments
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style"), ("Args of __call__", "params_style")]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # docstrings give shapes and dtypes, which say more
autodoc_class_signature = "mixed"

# Types of other projects and this project's aliases, which have no page to link to.
nitpick_ignore_regex = [
    (r"py:.*", r"(jax|optax|numpy|np|flax|collections|typing|pathlib)\..*"),
    (r"py:.*", r"Tree|Callable|Any"),
    (r"py:exc", r"UserError|Stopped"),  # prune_jax.errors, by their short names
]


def _with_options(app, what, name, obj, options, lines):
    """Gives a method's page the options that are declared in its code: one sentence, the default, what is allowed."""
    cls = getattr(obj, "options", None)
    if what != "function" or not isinstance(cls, type):
        return
    at = next((i for i, line in enumerate(lines) if line.startswith(("Raises:", "Example:"))), len(lines))
    rows = [
        f"  {name}: {one.text} Default {one.default!r}; allowed: {one.allowed}{' or None' if one.optional else ''}."
        for name, one in declared(cls).items()
    ]
    lines[at:at] = ["", "Args:", *rows, ""] if rows else []


def setup(app):
    app.connect("autodoc-process-docstring", _with_options, priority=100)  # before napoleon reads them
