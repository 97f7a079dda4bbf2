"""`make docs`: the pages of this folder as a site that works offline, searched in the browser."""

project = "vilmedic_ssl"
extensions = ["myst_parser"]
myst_heading_anchors = 3  # the headings other pages link to, named as on GitHub
html_theme = "furo"
html_title = "vilmedic_ssl"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
