"""The site: `python tools/build_docs.py` runs the pages' commands and builds build/docs from them by Sphinx."""

from tvmcnn import __version__

project = "tvmcnn"
copyright = "tvmcnn's authors"  # noqa: A001 (Sphinx's name)
release = __version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"tvmcnn {release}"
exclude_patterns = ["c", "ray", "speed-*.md"]  # the tables are parts of speed.md
myst_heading_anchors = 3
myst_url_schemes = ["http", "https"]
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository, which the site has not
