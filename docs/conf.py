"""Sphinx: ``pip install -e '.[docs]' && sphinx-build -W docs docs/_build``."""

import sb3_valuegrad

project = "sb3_valuegrad"
author = "sb3_valuegrad contributors"
release = version = sb3_valuegrad.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
html_theme = "furo"
root_doc = "index"
exclude_patterns = ["_build"]
# Headings can be linked to, as on GitHub.
myst_heading_anchors = 3
# Links to files of the repository are for GitHub.
suppress_warnings = ["myst.xref_missing"]
