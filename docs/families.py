"""The directive of the pages below docs/api: names of one module, as a table and then one by one.

    ```{family} tensorlite.nn
    conv max_pool
    pi: The ratio of a circle's circumference to its diameter.
    ```

A line holds names, or one name and the text of a value that has no docstring of its own.
"""

from __future__ import annotations

import importlib
import inspect

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Family(SphinxDirective):
    """A table of summaries, and below it every name with its signature and its docstring."""

    has_content = True
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table and the entries."""
        module = self.arguments[0]
        texts = values(list(self.content))
        objects = [name for name, text in texts.items() if not text]
        lines = [".. autosummary::", "   :nosignatures:", ""] if objects else []
        lines += [f"   ~{module}.{name}" for name in objects]
        for name, text in texts.items():
            lines += ["", *_entry(module, name, text)]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


def values(lines: list[str]) -> dict[str, str]:
    """The names in the body of a family, in order, each with its text or an empty one."""
    found: dict[str, str] = {}
    for line in lines:
        name, colon, text = line.partition(": ")
        found |= {name.strip(): text.strip()} if colon else dict.fromkeys(line.split(), "")
    return found


def _entry(module: str, name: str, text: str) -> list[str]:
    if text:
        return [f".. py:data:: {module}.{name}", "", f"   {text}"]
    thing = getattr(importlib.import_module(module), name)
    if not inspect.isclass(thing):
        return [f".. autofunction:: {module}.{name}"]
    if issubclass(thing, BaseException):
        return [f".. autoexception:: {module}.{name}"]
    return [f".. autoclass:: {module}.{name}", "   :members:"]
