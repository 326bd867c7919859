"""Results published with the project in docs/results: their verdicts, and their pages as part of the site."""

import re
import shutil
from pathlib import Path
from typing import Any

from nbconvert.filters import markdown2html

from paperlib.claims import load, papers
from paperlib.report.markdown import heading, with_formulas
from paperlib.runs.files import read_json, read_yaml, root, write_atomically
from paperlib.runs.overview import damaged_left_out

LINK = re.compile(r'(href|src)="([^"]*)"')
ELSEWHERE = ("#", "http:", "https:", "mailto:")


def folder() -> Path:
    """Return the folder of the published results."""
    return root() / "docs" / "results"


def results() -> list[dict[str, Any]]:
    """Read each claims.json: its claims, their paper, preset, data, and the name of its page."""
    found = []
    for file in sorted(folder().rglob("claims.json")):
        place = file.parent.relative_to(folder())
        with damaged_left_out(file.parent):
            claims = read_json(file)
            settings = read_yaml(file.with_name("settings.yaml"))
            page = place.parts[0] if (folder() / f"{place.parts[0]}.md").exists() else _page_that_shows(place)
            data = str(settings.get("data", "toy")).rstrip("/").rpartition("/")[2]
            ids = {claim["id"] for claim in claims}
            paper = max(papers(), key=lambda one: len(ids & {claim["id"] for claim in load(one)["claims"]}))
            found.append({"claims": claims, "paper": paper, "preset": settings["preset"], "data": data, "page": page})
    return found


def _page_that_shows(place: Path) -> str:
    names = (file.stem for file in sorted(folder().glob("*.md")) if f"]({place}/" in file.read_text(encoding="utf-8"))
    return next(names, "README")


def bodies(target: Path) -> dict[str, tuple[str, str]]:
    """Return the pages' titles and HTML by name. Linked files of docs/results are copied into `target`."""
    found = {}
    for file in sorted(folder().glob("*.md")):
        text = file.read_text(encoding="utf-8")
        body = LINK.sub(lambda match: _linked(match, target), markdown2html(with_formulas(text)))
        found[file.stem] = heading(text) or file.stem, body
    return found


def _linked(match: re.Match[str], target: Path) -> str:
    """Return a link for the site; empty if its target lies outside docs/results."""
    name = match[2].partition("#")[0]
    if match[2].startswith(ELSEWHERE):
        return match[0]
    file = (folder() / name).resolve()
    if not file.is_file() or not file.is_relative_to(folder().resolve()):
        return ""
    if file.suffix == ".md":
        return f'{match[1]}="{file.stem}.html"'
    write_atomically(target / name, lambda temporary: shutil.copyfile(file, temporary))
    return f'{match[1]}="{name}"'
