"""The site: ``nox -s docs`` builds it into ``build/docs``, without a network and without a warning."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

import curvlab  # noqa: E402  the path comes first

project = "curvlab"
author = "curvlab contributors"
project_copyright = "curvlab contributors"
version = release = curvlab.__version__

extensions = ["myst_parser", "mathml", "from_code"]
exclude_patterns = ["_ext", "examples"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
highlight_language = "none"  #: a block without a language is a formula or a listing
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "curvlab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
templates_path: list[str] = []
pygments_style = "friendly"
pygments_dark_style = "monokai"
html_theme_options = {"navigation_with_keys": True}
