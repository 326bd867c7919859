"""The site over all runs: its links, its exports, and its pages in a real browser where there is one."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY

from paperlib import audit, claims, export, figures, report, runs, tables
from paperlib.files import write_json

OUTCOMES = ("reproduced", "direction only", "not reproduced", "not tested here")


def summary_row(method: str, measure: str, mean: float) -> dict[str, object]:
    return {"method": method, "measure": measure, "mean": mean, "deviation": float("nan"), "low": mean - 0.05,
            "high": mean + 0.05, "seeds": 1, "n": 100, "sample_low": mean - 0.05, "sample_high": mean + 0.05, "each": None,
            "by_seed": [mean]}  # fmt: skip


def make_run(home: Path, notebook: str, preset: str, paper: str) -> runs.Run:
    """A finished run with claims, measures, a figure, a table and an audit."""
    settings = runs.resolve(notebook, preset, {})
    run = runs.start(notebook, {"preset": preset})
    rows = [summary_row(method, measure, 0.5 + 0.1 * place)
            for place, method in enumerate(("standard", "pgd_at", "raat", "vanilla"))
            for measure in ("clean", "pgd_10", "autoattack")]  # fmt: skip
    claims.judge(paper, run, pd.DataFrame(rows), classes=10, case="cifar10_resnet18_linf" if paper == "raat" else None)
    data = pd.DataFrame({"line": ["a", "b"], "x": [1.0, 2.0], "value": [3.0, 4.5], "panel": ["p", "p"]})
    figures.panels(run, data, "accuracy", x="x")
    columns = {("clean", "here"): [50.0, float("nan")], ("clean", "low"): [45.0, 40.0], ("ρ", "beside λ"): [1.0, 2.0]}
    table = pd.DataFrame(columns, index=["raat", "pgd_at"])
    tables.save(run, table, "accuracy", "Accuracy (%) & more.")
    check = next(iter(audit.CHECKS))
    write_json(run.folder / "audit" / "raat.json", {"recipe": "", "verdict": "suspicious", "checks": [
        {"check": check, "figure": 1.0, "sign": True}], "accuracies": [], "curve": [], "flags": []})  # fmt: skip
    (run.folder / f"{notebook}.html").write_text("<!doctype html><title>executed</title>")
    assert settings == run.settings
    run.finish()
    return run


def audit_a_model(home: Path) -> None:
    """What `paperlib audit` leaves behind."""
    folder = home / "runs" / "audit" / "mine-01234567"
    write_json(folder / "audit.json", {"model": "mine.py:build", "verdict": "masked", "checks": [
        {"check": "saturated outputs", "figure": 1.0, "sign": True}]})  # fmt: skip
    (folder / "index.html").write_text("<!doctype html><title>an audit</title>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    (home / "notebooks").symlink_to(REPOSITORY / "notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLIB_ROOT", str(home))
        yield built(home)


def built(home: Path) -> Path:
    for notebook, preset, paper in (
        ("raat_boundary", "quick", "raat"), ("raat_boundary", "laptop", "raat"), ("toy_pag", "quick", "pag"),
        ("toy_pag", "paper", "pag"),
    ):  # fmt: skip
        make_run(home, notebook, preset, paper)
    audit_a_model(home)
    return report.build()


def test_every_link_leads_to_a_file_of_the_site(site: Path) -> None:
    pages = sorted(site.parent.rglob("index.html"))
    assert len(pages) == 6
    for page in pages:
        text = page.read_text()
        for target in re.findall(r'(?:href|src)="([^"]+)"', text):
            file = target.partition("#")[0]
            assert not file or (page.parent / file).exists(), f"{page}: {target}"
        assert not re.search(r"https?://", text)
        for image in re.findall(r"<img [^>]*>", text):
            assert re.search(r'alt="[^"]{10,}"', image)


def test_the_ledger_is_of_the_nearest_runs_and_counts_them(site: Path) -> None:
    text = site.read_text()
    shown = re.findall(r'<tr data-paper="(\w+)" data-outcome="([\w ]+)" data-preset="(\w+)"', text)
    ids = {paper: claims.load(paper)["claims"] for paper in ("raat", "pag")}
    assert len(shown) == 2 * len(ids["raat"]) + sum(claim["notebook"] == "toy_pag" for claim in ids["pag"])
    assert {preset for paper, _, preset in shown if paper == "raat"} == {"quick", "laptop"}  # on two data sets
    for outcome in OUTCOMES:
        count = sum(one == outcome for _, one, _ in shown)
        assert re.search(rf"<strong>{count}</strong><br>\S {outcome}", text)
    assert "suspicious" in text
    assert re.search(r"mine\.py:build</td><td><a href=\"audit-mine-01234567/index.html\">.*\n<td>masked</td>", text)


def test_the_site_can_be_moved_and_built_elsewhere(site: Path, tmp_path: Path) -> None:
    elsewhere = report.build(tmp_path / "site")
    assert elsewhere.read_text() == site.read_text()
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "site", moved)
    test_every_link_leads_to_a_file_of_the_site(moved / "index.html")


def test_without_a_run_the_site_says_so(home: Path) -> None:
    text = report.build().read_text()
    assert "No claim was judged yet." in text
    assert "No run yet." in text


# Exports ------------------------------------------------------------------------------


def test_numbers_are_commands_that_latex_takes_and_say_what_was_measured(site: Path) -> None:
    lines = (site.parent / "numbers.tex").read_text().splitlines()[1:]
    found = dict(re.fullmatch(r"\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}", line).groups() for line in lines)  # type: ignore[union-attr]
    assert len(found) == len(lines)  # no name twice
    assert found["RaatBoundaryCifarOneZeroRaatAutoattack"] == "70.0"
    assert found["RaatBoundaryCifarOneZeroRaatAutoattackLow"] == "65.0"
    assert found["RaatBoundaryCifarOneZeroRaatPgdOneZero"] == "70.0"
    assert found["RaatBoundaryCifarOneZeroClaimRaatCleanVerdict"] in OUTCOMES
    assert "RaatBoundaryCifarOneZeroRaatAutoattackDeviation" not in found  # of one seed there is none


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_takes_numbers_and_tables(site: Path) -> None:
    document = site.parent / "all.tex"
    document.write_text(
        r"\documentclass{article}\usepackage{booktabs,multirow}\input{numbers}\begin{document}"
        r"\RaatBoundaryCifarOneZeroRaatAutoattack\input{tables}\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=site.parent, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode()[-2000:]


def test_methods_are_in_robustbenchs_format(site: Path) -> None:
    names = json.loads((site.parent / "robustbench.json").read_text())
    entries = {name: json.loads((site.parent / name).read_text()) for name in names}
    raat = next(entry for name, entry in entries.items() if name.endswith("raat_boundary-cifar10-raat.json"))
    # The keys of RobustBench's own files, model_info/cifar10/Linf/*.json.
    assert set(raat) - {"footnote"} == {
        "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps",
        "clean_acc", "reported", "autoattack_acc", "unreliable",
    }  # fmt: skip
    assert (raat["clean_acc"], raat["autoattack_acc"], raat["eps"]) == ("70.00", "70.00", "8/255")
    table = claims.load("raat")["tables"]
    known = next(one["rows"]["raat"]["autoattack"] for one in table.values() if "autoattack" in one["rows"].get("raat", {}))
    assert raat["reported"] == f"{known:.2f}"
    assert "100 images" in raat["footnote"]


def test_every_paper_has_a_bibtex_entry(site: Path) -> None:
    text = (site.parent / "papers.bib").read_text()
    assert re.findall(r"^@misc\{(\w+),$", text, re.MULTILINE) == [
        claims.load(one)["paper"]["key"] for one in claims.papers()
    ]
    assert text.count("{") == text.count("}")
    assert "author = {Roy Ganz and Bahjat Kawar and Michael Elad}" in text
    assert "under review" not in text
    assert "eprint = {2511.13749}" in text
    assert export.command("gfa_landscape", "l2-10x") == "GfaLandscapeLTwoOneZerox"


def test_settings_lie_beside_a_runs_page(site: Path) -> None:
    for file in site.parent.glob("*/settings.yaml"):
        assert yaml.safe_load(file.read_text())["preset"] in ("quick", "laptop", "paper")


# In a browser -------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
def test_pages_work_in_a_browser_without_an_error_or_a_request_to_elsewhere(site: Path, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        asked: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(site.as_uri())
        rows = page.locator("#ledger tbody tr")
        everything = rows.count()
        assert page.locator("form.filter output").inner_text() == f"{everything} of {everything}"

        page.select_option("select[name=paper]", "pag")
        left = page.locator("#ledger tbody tr:visible").count()
        assert 0 < left < everything
        assert page.locator("form.filter output").inner_text() == f"{left} of {everything}"
        page.fill("input[name=text]", "no such words")
        assert page.locator("#ledger tbody tr:visible").count() == 0
        page.fill("input[name=text]", "")
        page.select_option("select[name=paper]", "")

        head = page.locator("#ledger thead th", has_text="Paper says")
        for order, sign in (("ascending", 1), ("descending", -1)):
            head.locator("button").click()
            assert head.get_attribute("aria-sort") == order
            values = [rows.nth(place).locator("td").nth(3).get_attribute("data-value") for place in range(everything)]
            found = [sign * float(value) for value in values if value]
            assert found == sorted(found)
            assert values[: len(found)] == [value for value in values if value]  # what has no number comes last
            assert len(found) < len(values)
            assert len(set(found)) > 1

        page.goto((site.parent / str(page.locator("#ledger tbody a").nth(0).get_attribute("href"))).as_uri())
        widths = page.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
        assert len(widths) == 1
        assert widths[0] > 100
        narrow = browser.new_page(viewport={"width": 380, "height": 800}, color_scheme="dark")
        narrow.goto(site.as_uri())
        assert narrow.evaluate("document.documentElement.scrollWidth") <= 380  # nothing to scroll sideways for
        assert narrow.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light dark"
        narrow.emulate_media(media="print")
        assert not narrow.locator("form.filter").is_visible()
        browser.close()
    assert not errors
    assert all(url.startswith(("file://", "data:")) for url in asked), asked


def test_a_table_is_kept_as_a_page_shows_it(home: Path) -> None:
    run = make_run(home, "toy_pag", "quick", "pag")
    stored = json.loads((run.folder / "tables" / "accuracy.json").read_text())
    assert stored["caption"] == "Accuracy (%) & more."
    assert stored["rows"] == [["RAAT", "50.0", "45.0", "1.0"], ["PGD-AT", "–", "40.0", "2.0"]]
    assert stored["heads"][0] == "name"


def test_a_damaged_run_is_left_out_and_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(home, "toy_pag", "quick", "pag")
    damaged = make_run(home, "toy_pag", "paper", "pag").folder
    (damaged / "claims.json").write_text('[{"id": "a"}]')
    text = report.build().read_text()
    assert "damaged and left out (KeyError" in capsys.readouterr().err
    assert text.count("<td>quick</td>") == 1
    assert "<td>paper</td>" not in text


def test_names_in_a_runs_files_lead_nowhere_else(home: Path) -> None:
    folder = make_run(home, "raat_boundary", "quick", "raat").folder
    for name, changes in (("status.json", {"notebook": "../../../x"}), ("measures.json", {"method": "../../x"})):
        content = json.loads((folder / name).read_text())
        content = [{**row, **changes} for row in content] if isinstance(content, list) else {**content, **changes}
        write_json(folder / name, content)
    index = report.build()
    assert sorted(file.name for file in home.iterdir()) == ["notebooks", "runs"]
    assert {file.parent.name for file in index.parent.rglob("*.json")} <= {"report", "robustbench"}
    assert sorted(file.name for file in (home / "runs").iterdir()) == ["raat_boundary", "report"]
