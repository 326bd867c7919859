"""Pages from finished runs: one for each executed notebook, and an index of claims, figures, times and environment.

Nothing in them is loaded from elsewhere: figures are embedded, equations become MathML.
"""

import base64
import html
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, PackageLoader
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from traitlets.config import Config

from paperlib import figures
from paperlib.audit import Audit, as_json
from paperlib.claims import HELD, number
from paperlib.files import read_json, root, write_json, write_text
from paperlib.runs import status

TEMPLATES = Environment(loader=PackageLoader("paperlib"), autoescape=True, trim_blocks=True)
MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$", re.DOTALL)


def notebook_page(executed: Path) -> Path:
    """The executed notebook as one HTML file beside it, readable without network. Returns its path."""
    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = MATH.sub(_mathml, cell.source)
    exporter = HTMLExporter(config=Config({"HTMLExporter": {"mathjax_url": "", "require_js_url": ""}}))
    page, _ = exporter.from_notebook_node(notebook)
    page = re.sub(r"<script[^>]*\bsrc=[^>]*>\s*</script>", "", page)  # the template's loaders of scripts from afar
    target = executed.with_suffix(".html")
    write_text(target, page)
    return target


def _mathml(match: re.Match[str]) -> str:
    return convert(match[1] or match[2], display="block" if match[1] else "inline")


def runs() -> list[dict[str, Any]]:
    """Every run with a status, newest first: its folder, status, claims and environment."""
    found = []
    for file in (root() / "runs").glob("*/*/status.json"):
        folder = file.parent
        claims, about = folder / "claims.json", folder / "environment.json"
        found.append(
            {
                "folder": folder,
                "status": status(folder),
                "claims": read_json(claims) if claims.exists() else [],
                "environment": read_json(about)[-1] if about.exists() else {},
                "figures": sorted((folder / "figures").glob("*.png")),
            }
        )
    return sorted(found, key=lambda run: run["status"]["started"], reverse=True)


def tally(claims: list[dict[str, Any]]) -> tuple[int, int, int]:
    """How many claims held, did not hold, and were not tested."""
    held = sum(claim["outcome"] in HELD for claim in claims)
    untested = sum(claim["outcome"] == "not tested here" for claim in claims)
    return held, len(claims) - held - untested, untested


def index_page() -> Path:
    """Write runs/index.html over all runs and return its path."""
    base = root() / "runs"

    def embed(figure: Path) -> str:
        return f"data:image/png;base64,{base64.b64encode(figure.read_bytes()).decode()}"

    def page(run: dict[str, Any]) -> str | None:
        file = run["folder"] / f"{run['status'].get('notebook')}.html"
        return html.escape(file.relative_to(base).as_posix()) if file.exists() else None

    template = TEMPLATES.get_template("index.html")
    write_text(base / "index.html", template.render(runs=runs(), tally=tally, embed=embed, page=page, number=number))
    return base / "index.html"


def audit_page(found: Audit, about: Mapping[str, Any], folder: Path) -> Path:
    """Write an audit's page and its numbers, index.html and audit.json, into `folder`. `about` says of what it is."""
    picture = io.BytesIO()
    figures.sweep_curve(found.curve, about["norm"]).savefig(picture, format="png", metadata={"Software": None})
    figure = base64.b64encode(picture.getvalue()).decode()
    page = TEMPLATES.get_template("audit.html").render(found=found, about=about, figure=figure)
    write_json(folder / "audit.json", {**about, **as_json(found)})
    write_text(folder / "index.html", page)
    return folder / "index.html"
