"""The sheet of paper under every report: one HTML file that loads nothing and runs no foreign text.

    template ── environment ──> body ┐
    figure ── figure ──> its element ┴─ sheet ──> the whole document ── write ──> file

What a template shows is escaped, with control characters made visible. A content security policy
lets only the sheet's own scripts run, and a body without figures brings none: plotly is 4 MB.
"""

import base64
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from interlock.errors import RunError
from interlock.rundir import storage_errors, write_atomically
from interlock.text import visible

_BEGINS = b"<!DOCTYPE html>"
_HERE = Path(__file__).parent
_FIGURE = '<script type="application/json" class="figure">'  # what was escaped has no "<"


def sheet(title: str, body: str, style: str = "") -> str:
    """The document around `body`, which is trusted HTML: what an `environment` rendered.

    `style` is CSS after that of the run report (page.css). `title` is escaped here.
    """
    scripts = []
    if _FIGURE in body:
        scripts = [get_plotlyjs(), (_HERE / "sheet.js").read_text(encoding="utf-8")]
    # One that is marked as safe would escape the other when they are put together.
    css = (_HERE / "page.css").read_text(encoding="utf-8") + str(style)
    return (
        environment(_HERE)
        .get_template("sheet.html")
        .render(
            title=title,
            style=Markup(css),
            body=Markup(body),
            scripts=[Markup(script) for script in scripts],
            hashes=[_hash(script) for script in scripts],
        )
    )


def figure(fig: Mapping[str, Any], height: int = 280, name: str = "") -> Markup:
    """The element in which the sheet draws a plotly figure, {"data": …, "layout": …}.

    The sheet colours frame, grid and text by its theme; colours of traces are the figure's own.
    Numbers that are not finite become null. Foreign text in `fig` goes through `text.label`, for
    plotly reads some HTML. `height` is in pixels; `name` is the element's id.
    """
    marked = Markup(' id="{}"').format(name) if name else ""
    frame = Markup('<div class="plot"{} style="--height: {}px"></div>').format(marked, height)
    return frame + Markup(_FIGURE) + json_in_script(fig) + Markup("</script>")


def environment(folder: Path) -> Environment:
    """For the templates in `folder`: everything is escaped, and a missing name is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def json_in_script(content: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = msgspec.json.encode(content).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def write(path: Path, document: str) -> Path:
    """Write a document atomically, making the directories above it; returns `path`.

    Raises RunError when `path` is a directory, or a file that is no page, and when the disk does
    not take the file.
    """
    if path.is_dir():
        raise RunError(f"{path} is a directory; give the name of a file to write the report to")
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, document.encode(), over=_BEGINS)
    return path


def _hash(script: str) -> str:
    """The source expression with which the content security policy admits this very script."""
    return f"sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}"
