"""The frame of the HTML reports: one file without network access, where all texts are escaped."""

import base64
from typing import Any


def render_page(title: str, body: str, **values: Any) -> str:
    """Return a page with these values in `body`, a Jinja template."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(HEAD + body + "</body>\n</html>\n").render(title=title, **values)


def as_text(image: bytes) -> str:
    """Return a PNG as base64, for a data URL."""
    return base64.b64encode(image).decode()


HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>starlearn: {{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td.text, th.text { text-align: left }
td.wide { overflow-wrap: anywhere; font-size: .85rem; max-width: 26rem }
img { max-width: 100% }
figure { display: inline-block; margin: 0 1rem 1rem 0; max-width: 30rem }
figcaption { font-weight: 600 }
.scroll { overflow-x: auto }
</style>
</head>
<body>
<h1>{{ title }}</h1>
"""
