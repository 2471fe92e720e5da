"""How Sphinx makes the site: `make docs` writes it to build/docs. It fetches nothing.

Docstrings are written to be read in a terminal, with code between single backticks and indented
examples; what stands here makes of that what reStructuredText asks for."""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from docutils import nodes
from families import Family
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import tensorlite

project = "tensorlite"
copyright = "the tensorlite authors, Apache-2.0"
version = release = tensorlite.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
default_role = "py:obj"  # a name between backticks leads to it, anything else is shown as code
nitpicky = False
smartquotes = True
smartquotes_action = "D"  # dashes only

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"tensorlite {version}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {
    "navigation_with_keys": False,
    "light_css_variables": {"color-brand-primary": "#1d5f8a", "color-brand-content": "#1d5f8a"},
    "dark_css_variables": {"color-brand-primary": "#7cc0ec", "color-brand-content": "#7cc0ec"},
}

SHORT = {"tl": "tensorlite", "dist": "tensorlite.distributed"}
INSIDE = ("nn", "optim", "random", "data", "io", "linalg", "tree", "profiler")


def as_restructured(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Put two colons above an indented block that follows an empty line, since it is code, and take
    `*` and `|` outside of code for themselves."""
    made: list[str] = []
    width, inside, example = 0, False, False  # of the last paragraph; in a block; in a doctest
    for line in lines:
        indent = len(line) - len(line.lstrip())
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if line.strip():
            starts_block = bool(made) and not made[-1].strip() and indent > width
            inside = indent > width if inside else starts_block
            if starts_block and not (example or line.lstrip().startswith("- ")):
                made += [" " * width + "::", ""]
            if not inside:
                width = indent
        made.append(line if inside or example else _plain(line))
    lines[:] = made


def _plain(line: str) -> str:
    parts = line.split("`")  # every other one is code
    parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def short_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """`Callable[..., Any]` as it is written."""
    if not signature:
        return None
    return tuple((text or "").replace("[[...]", "[...") for text in (signature, returns))


def short_names(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement
) -> nodes.Element | None:
    """`tl.grad` and `nn.conv`, as docstrings call them, lead to `tensorlite.grad` and so on."""
    first, _, rest = node["reftarget"].partition(".")
    if node.get("refdomain") != "py" or not rest:
        return None
    module = SHORT.get(first) or (f"tensorlite.{first}" if first in INSIDE else "")
    if not module:
        return None
    python = env.domains.python_domain
    return python.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], f"{module}.{rest}", node, text
    )


def setup(app: Sphinx) -> None:
    """Add the directive `family`, and the functions above."""
    app.add_directive("family", Family)
    app.connect("autodoc-process-docstring", as_restructured, priority=400)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("missing-reference", short_names)
