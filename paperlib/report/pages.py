"""Pages of executed notebooks and audits, and the site with the claims of all runs.

Pages load nothing from the network: equations become MathML, and images lie beside the pages.
"""

import base64
import html
import io
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from nbconvert import HTMLExporter
from traitlets.config import Config

from paperlib import figures
from paperlib.audit import Audit, as_json
from paperlib.claims import MARKS, load, number, paper_of, papers
from paperlib.claims.power import UNTOLD
from paperlib.figures.names import title
from paperlib.report import export, front, left_open, published
from paperlib.report.markdown import heading, with_formulas
from paperlib.runs import made, overview
from paperlib.runs.files import InputError, read_json, root, seen, shipped, within, write_atomically, write_json, write_text
from paperlib.runs.overview import damaged_left_out, tally
from paperlib.runs.run import PRESETS

TEMPLATES = Environment(loader=PackageLoader("paperlib.report"), autoescape=True, trim_blocks=True)
NOTEBOOK_TEMPLATES = Path(__file__).parent / "templates"


def notebook_page(executed: Path) -> Path:
    """Write an executed notebook as one HTML file beside it, for offline reading. Return the file's path.

    Its title is the first heading.
    """
    notebook = nbformat.read(executed, as_version=4)
    words = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    notebook.metadata["title"] = heading("\n".join(cell.source for cell in words)) or executed.stem
    for cell in words:
        cell.source = with_formulas(cell.source)
    options = {"mathjax_url": "", "require_js_url": "", "extra_template_basedirs": [str(NOTEBOOK_TEMPLATES)]}
    exporter = HTMLExporter(template_name="notebook", config=Config({"HTMLExporter": options}))
    page, _ = exporter.from_notebook_node(notebook)
    page = re.sub(r"<script[^>]*\bsrc=[^>]*>\s*</script>", "", page)  # the template loads scripts from the network
    target = executed.with_suffix(".html")
    write_text(target, page)
    return target


def _audit(model: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Prepare a stored audit for pages, with accuracies in percent. Raises KeyError or ValueError if it is damaged."""
    percent = ("accuracy", "low", "high")
    return {
        "model": model,
        "verdict": stored.get("verdict", "–"),
        "checks": [_check(row) for row in stored["checks"]],
        "accuracies": [
            {**row, **{name: 100 * float(row[name]) for name in percent}} for row in stored.get("accuracies", [])
        ],
        "flags": list(map(str, stored.get("flags", []))),
    }


def _check(row: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a stored check the positions of its numbers in a plot that begins at zero, in percent of the width."""
    figure, threshold = float(row["figure"]), float(row["threshold"])
    low = float(row.get("low", figure))  # older audits have no intervals
    end = 1.15 * max(figure, threshold, 1e-9)
    at = {name: 100 * max(value, 0) / end for name, value in (("low", low), ("high", figure), ("threshold", threshold))}
    return {**row, "figure": figure, "low": low, "threshold": threshold, "at": at}


# The site ----------------------------------------------------------------------------------------------------------

MAIN = ("accuracies", "attacks", "grid", "decision_boundaries")  # the first existing one represents a run


def build(target: Path | None = None) -> Path:
    """Write the site of all runs into `target`, by default runs/report/. Return the path of its first page.

    The site is self-contained: it can be moved, opened as a file, or served. The first page shows the claims of `_nearest`
    and the published results. Pages of unchanged runs are not rewritten.
    """
    target = target or root() / "runs" / "report"
    before, damaged = made.of_site(target), len(overview.left_out)
    of_all, known = made.of_all(), made.stored(target).get("runs", {})
    pages, kept = [], {}
    for run in overview.runs():
        with damaged_left_out(run["folder"]):
            page, source = _page(run), made.digest(of_all, made.of_run(run["folder"]))
            place = target / page["name"]
            if known.get(page["name"]) != [source, made.digest(seen(place))]:
                _write_page(page, place)
            kept[page["name"]] = [source, made.digest(seen(place))]
            pages.append(page)
    for name, (words, body) in published.bodies(target / "published").items():
        _write(target / "published" / f"{name}.html", "published.html", words=words, body=Markup(body))
    chosen = _nearest(pages)
    claims = [claim for page in chosen for claim in page["claims"]]
    _write(target / "claims.html", "claims.html", claims=claims, marks=MARKS)
    _write(
        target / "index.html", "index.html", chosen=chosen, runs=pages, marks=MARKS, **_verdicts(chosen),
        audits=[
            {**one, "run": page["notebook"], "page": f"{page['page']}#audit"} for page in chosen for one in page["audits"]
        ] + _audits_of_models(target),
        files=export.write(target, {_short(page, chosen): page["folder"] for page in chosen}),
    )  # fmt: skip
    whole = before if len(overview.left_out) == damaged else ""  # so that damaged runs are reported each time
    write_json(target / made.KEPT, {"site": [whole, made.digest(seen(target))], "runs": kept})
    return target / "index.html"


def _verdicts(chosen: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first page's claims, own and published: counts by paper, forest plots, and untested claims."""
    own, known = [claim for page in chosen for claim in page["claims"]], []
    for result in published.results():
        page = f"published/{result['page']}.html"
        place = {**result, "page": page, "notebook": "published", "name": "published", "figures": [], "executed": None}
        with damaged_left_out(published.folder()):
            shown = [_shown(claim, place, _title(result["paper"])) for claim in result["claims"]]
            known += [{**claim, "published": True} for claim in shown]
    plans = {page["notebook"]: left_open.plans(page["notebook"]) for page in chosen if _left_open(page)}
    left = [
        {
            **claim,
            "would_do": left_open.would_do(claim["id"], page["plan"].get(claim["id"]), plans.get(page["notebook"], {})),
        }
        for page in chosen
        for claim in page["claims"]
        if claim["outcome"] == "not tested here"
    ]
    ours = {(claim["paper"], claim["id"]) for claim in own if _decided(claim)}
    beside = [claim for claim in known if _decided(claim) and (claim["paper"], claim["id"]) in ours]
    others = [claim for claim in known if _decided(claim) and (claim["paper"], claim["id"]) not in ours]
    names = dict.fromkeys([*map(_title, papers()), *(claim["paper"] for claim in own)])
    return {
        "papers": [(name, *(_counts(claim for claim in of if claim["paper"] == name) for of in (own, known)))
                   for name in names],
        "forests": front.forests([*filter(_decided, own), *beside]),
        "published": front.forests(others),
        "left": left, "published_left": [claim for claim in known if claim["outcome"] == "not tested here"],
    }  # fmt: skip


def _decided(claim: Mapping[str, Any]) -> bool:
    return claim["outcome"] != "not tested here" and claim["measured"] is not None


def _left_open(page: Mapping[str, Any]) -> bool:
    """Return whether a claim of a run was left open because it had too few images or seeds."""
    return any(claim["outcome"] == "not tested here" and page["plan"].get(claim["id"]) in ("no", UNTOLD)
               for claim in page["claims"])  # fmt: skip


def _counts(claims: Iterable[Mapping[str, Any]]) -> dict[str, int] | None:
    """Count the claims by outcome; None if there are no claims."""
    outcomes = [claim["outcome"] for claim in claims]
    return {outcome: outcomes.count(outcome) for outcome in MARKS} if outcomes else None


def _title(paper: str) -> str:
    return str(load(paper)["paper"]["title"])


def _audits_of_models(target: Path) -> list[dict[str, Any]]:
    """Read the audits of users' own models, and copy their pages into the site."""
    found = []
    for file in sorted((root() / "runs" / "audit").glob("*/audit.json")):
        page = f"audit-{file.parent.name}/index.html"
        with damaged_left_out(file.parent):
            _refuse_links(file.parent)
            stored = read_json(file)
            _copy(file.with_name("index.html"), target / page)
            model = without_places(str(stored["model"]), stored)
            found.append({**_audit(model, stored), "run": "paperlib audit", "page": page})
    return found


def _nearest(pages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select, for each notebook and data set, the run with claims that is closest to its paper.

    The criteria are preset, number of settings that differ from the paper, and whether it finished. Then more seeds, more
    images, more epochs, and fewer untested claims decide.
    """

    def distance(page: dict[str, Any]) -> tuple[float, ...]:
        preset = -PRESETS.index(page["preset"]) if page["preset"] in PRESETS else 1
        sizes = [-size for size in page["sizes"]]
        return preset, page["differences"], page["state"] != "finished", *sizes, page["tally"][2]

    found: dict[tuple[str, str], dict[str, Any]] = {}
    for page in sorted((page for page in pages if page["claims"]), key=distance):
        found.setdefault((page["notebook"], page["data"]), page)
    return [found[name] for name in sorted(found)]


def _short(page: Mapping[str, Any], pages: list[dict[str, Any]]) -> str:
    """Return a run's name in exports: its notebook, and its data set if the notebook has several."""
    alone = sum(other["notebook"] == page["notebook"] for other in pages) == 1
    return str(page["notebook"]) if alone else f"{page['notebook']}-{page['data']}"


def _page(run: dict[str, Any]) -> dict[str, Any]:
    """Read from a run's folder everything that pages show of it."""
    folder, about = run["folder"], run["status"]
    _refuse_links(folder)
    name = f"{about['notebook']}-{folder.name}"
    executed, chosen = folder / f"{about['notebook']}.html", run["settings"] or {"data": "?"}
    data = chosen.get("data", "toy")
    page = {
        "name": name, "page": f"{name}/index.html", "folder": folder, "notebook": about["notebook"],
        "preset": about["preset"], "data": str(data).rstrip("/").rpartition("/")[2], "state": about["state"],
        "error": without_places(str(about.get("error", "")), chosen), "seconds": about["seconds"],
        "headline": headline(about["notebook"]), "tally": tally(run["claims"]), "settings": chosen,
        "environment": read_json(sessions)[-1] if (sessions := folder / "environment.json").exists() else {},
        "audits": [_audit(title(file.stem), read_json(file)) for file in sorted((folder / "audit").glob("*.json"))],
        "executed": executed.name if executed.exists() else None,
        "figures": [_figure(file, about["notebook"]) for file in sorted((folder / "figures").glob("*.png"))],
        "tables": [_table(read_json(file)) for file in sorted((folder / "tables").glob("*.json"))],
        "accuracies": front.accuracies(read_json(measures)) if (measures := folder / "measures.json").exists() else None,
        "plan": {row["id"]: row["decides"] for row in read_json(plan)} if (plan := folder / "plan.json").exists() else {},
        "differences": run["claims"][0]["scale"].count(";") if run["claims"] else 0,
        "sizes": (
            max((int(claim.get("seeds") or 0) for claim in run["claims"]), default=0),
            float(chosen.get("train_images") or math.inf), float(chosen.get("epochs") or 0),
        ),
    }  # fmt: skip
    page["main"] = min(page["figures"], key=lambda one: MAIN.index(one["name"]) if one["name"] in MAIN else len(MAIN),
                       default=None)  # fmt: skip
    paper = paper_of(about["notebook"])
    for claim in run["claims"]:
        claim |= {key: without_places(words, chosen) for key, words in claim.items() if isinstance(words, str)}
    page["claims"] = [_shown(claim, page, _title(paper) if paper else about["notebook"]) for claim in run["claims"]]
    return page


def _write_page(page: dict[str, Any], place: Path) -> None:
    """Write the page of a run into the folder `place`, and copy its files there."""
    folder = page["folder"]
    shown = [folder / f"{page['notebook']}.html", folder / "settings.yaml"]
    shown += [folder / "figures" / f"{figure['name']}{kind}" for figure in page["figures"] for kind in (".png", ".pdf")]
    for file in shown:
        if file.suffix in (".html", ".yaml") and file.exists():
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{file}: not UTF-8 text ({error}); delete it and start the run again") from None
            write_text(place / file.name, without_places(text, page["settings"]))
        elif file.exists():
            _copy(file, place / file.name)
    figures_here = "#figures" if page["figures"] else None
    here = {
        **page,
        "claims": [
            {**claim, "page": "#", "folder": "", "figures": figures_here, "executed": page["executed"]}
            for claim in page["claims"]
        ],
    }
    _write(place / "index.html", "run.html", run=here, marks=MARKS)


def headline(notebook: str) -> str:
    """Return the first heading of a notebook."""
    file = shipped("notebooks") / f"{notebook}.py"
    found = re.search(r"^# (# .+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if file.exists() else None
    return heading(found[1]) if found else notebook


def _shown(claim: dict[str, Any], page: Mapping[str, Any], paper: str) -> dict[str, Any]:
    """Prepare a claim for pages, with its links and formatted numbers."""
    absent = {"n": None, "seeds": None, "spread": None, "kind": "gain"}  # in runs of older versions
    claim = {**absent, **claim, "id": str(claim["id"])}
    numbers = {name: number(claim[name], claim["kind"]) for name in ("claimed", "measured", "low", "high")}
    links = {name: page[name] for name in ("notebook", "preset", "data", "page")} | {"folder": f"{page['name']}/"}
    links["figures"] = f"{page['page']}#figures" if page["figures"] else None
    links["executed"] = f"{page['name']}/{page['executed']}" if page["executed"] else None
    return {**claim, **links, "paper": paper, "shown": numbers}


def _figure(file: Path, notebook: str) -> dict[str, Any]:
    """Return a figure's files, title, and alternative text."""
    name = title(file.stem)
    about = read_json(file.with_suffix(".json")) if file.with_suffix(".json").exists() else {}
    words = f"{name}, of {notebook}. {about.get('words', '')}"
    return {"name": file.stem, "file": file.name, "pdf": f"{file.stem}.pdf", "title": name, "words": words}


def _table(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a stored table that pages show. Raises KeyError if one is missing."""
    return {name: stored[name] for name in ("caption", "heads", "rows")}


def _refuse_links(folder: Path) -> None:
    """Raise InputError for links in a run's folder, since a foreign run could publish files outside it.

    Links in `made.UNREAD` are allowed: the site does not read those folders, which may lie on another disk.
    """
    for file in within(folder):
        if file.is_symlink() and Path(file).relative_to(folder).parts[0] not in made.UNREAD:
            raise InputError(f"{file.path} is a link; replace it by the file itself")


def without_places(text: str, given: Mapping[str, Any]) -> str:
    """Replace this machine's folders in a text by "…/", so that the text can be published.

    The folders are those of the project, the user, and absolute paths in `given`.
    """
    if "/" not in text:
        return text
    paths = [str(value).removeprefix("folder:") for value in given.values()]
    home = Path(os.path.expanduser("~"))  # Path.home() raises an error for a user without one
    folders = {root(), home, *(Path(path).parent for path in paths if path.startswith("/"))} - {Path("/")}
    for folder in sorted(map(str, folders), key=len, reverse=True):
        text = text.replace(f"{folder}/", "…/").replace(html.escape(f"{folder}/"), "…/")
    return text


def _copy(file: Path, target: Path) -> None:
    write_atomically(target, lambda temporary: shutil.copyfile(file, temporary))


def _write(file: Path, template: str, **given: Any) -> None:
    write_text(file, TEMPLATES.get_template(template).render(**given))


def audit_page(found: Audit, folder: Path | str, about: Mapping[str, Any] | None = None) -> Path:
    """Write an audit's page and numbers, index.html and audit.json, into `folder`. Return the page's path.

    `about` is shown at the head of the page. The site lists audits in runs/audit/ by `about["model"]` or their folder.
    """
    folder, picture = Path(folder), io.BytesIO()
    about = {"model": folder.name, "eps": f"{found.eps:.4g}", "norm": found.norm, **(about or {})}
    figures.sweep_curve(found.curve, found.norm).savefig(picture, format="png", metadata={"Software": None})
    figure = base64.b64encode(picture.getvalue()).decode()
    stored = as_json(found)
    write_json(folder / "audit.json", {**about, **stored})
    about = {name: without_places(str(value), about) for name, value in about.items()}
    audit = _audit(about["model"], stored)
    _write(folder / "index.html", "audit.html", found=found, audit=audit, about=about, figure=figure)
    return folder / "index.html"
