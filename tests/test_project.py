"""The project's own files agree with each other."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from conftest import REPOSITORY

import paperlib


def requirements(lines: list[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, bounds = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", line).groups()  # type: ignore[union-attr]
        found[name.lower()] = bounds
    return found


def test_conda_and_pip_ask_for_the_same() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    listed = requirements(
        [entry for entry in conda if isinstance(entry, str)] + [entry for entry in pip if entry[0] != "-"]
    )
    listed["torch"] = listed.pop("pytorch")  # its name on conda-forge
    assert listed.pop("python") == project["requires-python"]
    assert listed.pop("pip") == ""
    assert listed == requirements(project["dependencies"])


def test_the_version_is_one() -> None:
    assert tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"] == paperlib.__version__
    assert f"\nversion: {paperlib.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^    )make ([a-z-]+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE))
    assert {"reproduce", "test"} <= named <= targets


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


FLOORS = [
    "runs", "data", "models", "zoo", "attacks", "geometry", "figures", "evaluation", "methods", "training", "audit",
    "claims", "studies", "report", "cli",
]  # fmt: skip


def test_imports_go_down_the_floors() -> None:
    """A folder of paperlib imports from the folders before it, and from itself."""
    package = REPOSITORY / "paperlib"
    found = {path.stem for path in package.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert found == {*FLOORS, "__init__"}
    for file in package.rglob("*.py"):
        own = file.relative_to(package).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("paperlib"):
                continue
            parts = (node.module or "").split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            for name in [name for name in names if not name.startswith("_")]:
                assert FLOORS.index(name) <= FLOORS.index(own), f"{file.name} imports {name}"


def test_the_readme_is_short_and_its_count_of_verdicts_true() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert len(readme.split()) <= 900
    published = [json.loads(file.read_text()) for file in (REPOSITORY / "docs" / "results").rglob("claims.json")]
    outcomes = [claim["outcome"] for claims in published for claim in claims]
    told = re.search(r"(\d+) verdicts so far, and (\d+) of them are \"not tested\"", readme)
    assert told
    assert [int(number) for number in told.groups()] == [len(outcomes), outcomes.count("not tested here")]


def test_the_ledger_counts_the_published_verdicts() -> None:
    readme = (REPOSITORY / "docs" / "results" / "README.md").read_text()
    rows = re.findall(r"^\| \[[^|]*\| [^|]* \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", readme, re.MULTILINE)
    total = re.search(r"^\| all \| \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", readme, re.MULTILINE)
    assert total
    found = []
    for file in (REPOSITORY / "docs" / "results").rglob("claims.json"):
        outcomes = [claim["outcome"] for claim in json.loads(file.read_text())]
        forms = ("reproduced", "direction only", "not reproduced", "not tested here")
        found.append((len(outcomes), *(outcomes.count(form) for form in forms)))
    assert sorted(tuple(map(int, row)) for row in rows) == sorted(found)
    assert tuple(map(int, total.groups())) == tuple(map(sum, zip(*found, strict=True)))


def test_a_wheel_has_every_notebook_and_every_network_of_the_zoo() -> None:
    globs = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    shipped = {file.relative_to(REPOSITORY): folder for folder, patterns in globs.items()
               for pattern in patterns for file in REPOSITORY.glob(pattern)}  # fmt: skip
    for place in ("notebooks/*.ipynb", "notebooks/presets/*.yaml", "zoo/*/*"):
        for file in REPOSITORY.glob(place):
            name = file.relative_to(REPOSITORY)
            assert shipped.get(name) == f"share/paperlib/{name.parent}", name


def test_installed_from_a_wheel_it_works_in_the_current_folder(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "paperlib", tmp_path / "site-packages" / "paperlib")
    place, prefix = tmp_path / "anywhere", tmp_path / "prefix"
    place.mkdir()
    shutil.copytree(REPOSITORY / "notebooks", prefix / "share" / "paperlib" / "notebooks")
    script = f"""
import sys
sys.prefix = {str(prefix)!r}
from paperlib.runs import files, run
print(files.root(), sorted(run.read_presets("toy_pag")))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site-packages")}
    environment.pop("PAPERLIB_ROOT", None)
    done = subprocess.run([sys.executable, "-c", script], cwd=place, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == f"{place} ['gpu', 'laptop', 'paper', 'quick']", done.stderr
