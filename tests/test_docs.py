"""The site of docs/: it builds, every link leads somewhere, and the reference names what users call."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, which ends at the first link that leads nowhere."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=quiet, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_the_site_has_every_page_of_docs_and_every_notebook(site: Path) -> None:
    docs = {page.relative_to(REPOSITORY / "docs").with_suffix("") for page in (REPOSITORY / "docs").rglob("*.md")}
    names = {str(page).replace("README", "index") for page in docs}
    names |= {f"notebooks/{notebook.stem}" for notebook in (REPOSITORY / "notebooks").glob("*.ipynb")}
    assert not [name for name in names if not (site / f"{name}.html").is_file()]


def test_the_reference_has_every_module_and_its_functions(site: Path) -> None:
    for module in (REPOSITORY / "paperlib").glob("*/*.py"):
        if not module.stem.startswith("_"):
            page = (site / "reference" / f"{module.parent.name}.html").read_text("utf-8")
            assert f"paperlib.{module.parent.name}.{module.stem}" in page
    assert "attack_loss" in (site / "reference" / "attacks.html").read_text("utf-8")


def test_the_site_fetches_nothing(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        for mark in ('src="http', 'rel="stylesheet" href="http', "url(http"):
            assert mark not in text, f"{page.name}: {mark}"


def test_search_knows_the_papers(site: Path) -> None:
    found = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    assert any("boundary" in entry["text"] for entry in found["docs"])
