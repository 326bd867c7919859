"""Pages from finished runs: one for each executed notebook, and an index of claims, figures, times and environment.

Nothing in them is loaded from elsewhere: figures are embedded, equations become MathML.
"""

import base64
import html
import re
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from traitlets.config import Config

from paperlib.claims import HELD, number
from paperlib.files import read_json, root, write_text
from paperlib.runs import status

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
        return "data:image/png;base64," + base64.b64encode(figure.read_bytes()).decode()

    def page(run: dict[str, Any]) -> str | None:
        file = run["folder"] / f"{run['status'].get('notebook')}.html"
        return html.escape(file.relative_to(base).as_posix()) if file.exists() else None

    template = Environment(autoescape=True).from_string(INDEX)
    write_text(base / "index.html", template.render(runs=runs(), tally=tally, embed=embed, page=page, number=number))
    return base / "index.html"


INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>paperlib: runs</title>
<style>
 :root { color-scheme: light dark }
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
 table { border-collapse: collapse; width: 100%; margin: 1rem 0 } td, th { text-align: left; vertical-align: top;
 padding: .3rem .6rem; border-bottom: 1px solid #8886 } img { max-width: 100%; background: white; margin: .5rem 0 }
 .number { text-align: right; white-space: nowrap } small { opacity: .75 } .wide { overflow-x: auto }
</style></head><body>
<h1>Claims and runs</h1>
{% for run in runs %}{% set counts = tally(run.claims) %}
<section><h2>{{ run.status.notebook }} · {{ run.status.preset }}</h2>
<p>{{ run.status.state }}{% if run.status.error %}: {{ run.status.error }}{% endif %} ·
{{ "%.0f"|format(run.status.seconds or 0) }} s · held {{ counts[0] }}, not held {{ counts[1] }}, not tested {{ counts[2] }}
{% if page(run) %}· <a href="{{ page(run) }}">the executed notebook</a>{% endif %}<br>
<small>{{ run.folder.name }} · {% for name, value in run.environment.items() %}{{ name }} {{ value }}
{{- ", " if not loop.last }}{% endfor %}</small></p>
{% if run.claims %}<div class="wide"><table>
<tr><th>Claim</th><th>Place</th><th class="number">Paper</th><th class="number">Measured</th><th>Verdict</th></tr>
{% for claim in run.claims %}<tr><td>{{ claim.statement }}</td><td>{{ claim.place }}</td>
<td class="number">{{ number(claim.claimed, claim.kind) }}</td>
<td class="number">{{ number(claim.measured, claim.kind) }}{% if claim.measured is not none %}<br>
<small>{{ number(claim.low, claim.kind) }} to {{ number(claim.high, claim.kind) }}</small>{% endif %}</td>
<td><strong>{{ claim.outcome }}</strong>: {{ claim.reason }}</td></tr>{% endfor %}
</table></div>
{% if run.claims[0].scale %}<p><small>Not as the paper: {{ run.claims[0].scale }}.</small></p>{% endif %}
{% endif %}
{% for figure in run.figures %}<details><summary>{{ figure.stem.replace("_", " ") }}</summary>
<img src="{{ embed(figure) }}" alt="{{ figure.stem.replace("_", " ") }}"></details>{% endfor %}
</section>{% else %}<p>No run yet.</p>{% endfor %}
</body></html>
"""
