"""The primitives, one family a file, each with all its rules. The public names are gathered in
`tensorlite/__init__.py`."""
