"""What the site has beyond the files of docs/: the README as its first page, the reference, and the notebooks as they ran.

A notebook is shown as its newest finished run left it, quick's first; where none has run, without outputs.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from paperlib.runs import overview

ROOT = Path(__file__).parent.parent
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
NO_RUN = "*Not run yet on the machine that built this page: `paperlib run {}` first, then `make docs`.*"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")


@event_priority(100)  # before the notebooks' plugin
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file of docs/ is."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for part in sorted((ROOT / "paperlib").iterdir()):
        if (part / "__init__.py").exists() or part.name == "zoo.py":
            files.append(File.generated(config, f"reference/{part.stem}.md", content=_reference(part)))
    built = Path(config.site_dir).parent / "notebooks"  # the plugin reads files
    built.mkdir(parents=True, exist_ok=True)
    runs = overview.runs()
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        (built / notebook.name).write_text(_as_it_ran(notebook, runs), "utf-8")
        files.append(File(f"notebooks/{notebook.name}", str(built.parent), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links lead to pages of the site, and name files that are not of it."""
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        image, text, target, anchor = found.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        pages = {name: page for page, name in PAGES.items()}
        uri = pages.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if uri is not None and (uri in files.src_uris or f"{uri}/README.md" in files.src_uris):
            uri = uri if uri in files.src_uris else f"{uri}/README.md"
            return f"{image}[{text}]({posixpath.relpath(uri, here or '.')}{anchor or ''})"
        if not (ROOT / path).exists():
            return found[0]  # the builder says so
        return text if text.strip("`") == path else f"{text} (`{path}`)"

    return LINK.sub(link, markdown)


def _reference(part: Path) -> str:
    modules = [part] if part.suffix else sorted(part.glob("*.py"))
    names = [".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for module in modules]
    own = [name for name in names if name.count(".") > 1 or part.suffix]
    return "\n\n".join([f"# {part.stem}", *(f"::: {name}" for name in own or names)])


def _as_it_ran(notebook: Path, runs: list[dict[str, Any]]) -> str:
    own = [run for run in runs if run["folder"].parent.name == notebook.stem and run["status"]["state"] == "finished"]
    own.sort(key=lambda run: run["status"]["preset"] != "quick")  # they come newest first
    files: list[Path] = [file for run in own if (file := run["folder"] / notebook.name).is_file()]
    if files:
        return files[0].read_text("utf-8")
    cells = json.loads(notebook.read_text("utf-8"))
    said = {"cell_type": "markdown", "id": "not-run", "metadata": {}, "source": [NO_RUN.format(notebook.stem)]}
    return json.dumps({**cells, "cells": [*cells["cells"][:1], said, *cells["cells"][1:]]})
