"""The site over all runs: its links, its exports, and its pages in a real browser where there is one."""

import base64
import functools
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import nbformat
import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY
from filelock import FileLock
from hypothesis import strategies as st
from PIL import Image

from paperlib import audit, claims, figures, report, studies
from paperlib.claims import power
from paperlib.figures import tables
from paperlib.report import export, front, left_open
from paperlib.runs import made
from paperlib.runs import run as runs
from paperlib.runs.files import read_json, write_json, write_text
from paperlib.studies import raat as raat_study

OUTCOMES = ("reproduced", "direction only", "not reproduced", "not tested here")


def summary_row(method: str, measure: str, mean: float, seeds: int = 1) -> dict[str, object]:
    return {"method": method, "measure": measure, "mean": mean, "deviation": float("nan") if seeds == 1 else 0.0,
            "low": mean - 0.05, "high": mean + 0.05, "seeds": seeds, "n": 100, "sample_low": mean - 0.05,
            "sample_high": mean + 0.05, "each": None, "by_seed": [mean] * seeds,
             "seed_list": tuple(range(seeds))}  # fmt: skip


def make_run(home: Path, notebook: str, preset: str, paper: str, given: Mapping[str, object] | None = None) -> runs.Run:
    """A finished run with claims, measures, figures, a table, an audit and its executed notebook."""
    settings = studies.resolve(notebook, preset, dict(given or {}))
    run = studies.start(notebook, {"preset": preset, **(given or {})})
    rows = [summary_row(method, measure, 0.5 + 0.1 * place, len(getattr(settings, "seeds", [0])))
            for place, method in enumerate(("standard", "pgd_at", "raat", "vanilla"))
            for measure in ("clean", "pgd_10", "autoattack")]  # fmt: skip
    case = raat_study.case(settings) if notebook == "raat_boundary" else None  # type: ignore[arg-type]
    claims.judge(paper, run, pd.DataFrame(rows), classes=10, case=case)
    data = pd.DataFrame({"line": ["a", "b"], "x": [1.0, 2.0], "value": [3.0, 4.5], "panel": ["p", "p"]})
    figures.panels(run, data, "accuracy", x="x")
    if notebook == "alignment_matrix":
        figures.grid(run, pd.DataFrame(rows))
        figures.correlations(run, predicted(), "autoattack")
        figures.front(run, a_front(), "autoattack")
    columns = {("clean", "here"): [50.0, float("nan")], ("clean", "low"): [45.0, 40.0], ("ρ", "beside λ"): [1.0, 2.0]}
    table = pd.DataFrame(columns, index=["raat", "pgd_at"])
    tables.save(run, table, "accuracy", "Accuracy (%) & more.")
    write_json(run.folder / "audit" / "raat.json", {"recipe": "", **audit.as_json(an_audit())})
    executed = run.folder / f"{notebook}.ipynb"
    nbformat.write(a_notebook(), executed)
    report.notebook_page(executed)
    assert settings == run.settings
    run.finish()
    return run


def predicted() -> pd.DataFrame:
    """Of `measures.predictors`."""
    columns = pd.MultiIndex.from_tuples(
        [(part, end) for part in ("ρ", "beside the gradient") for end in ("value", "low", "high")] + [("models", "")]
    )
    return pd.DataFrame([[0.5, 0.1, 0.9, 0.2, -0.3, 0.6, 9]], index=["pag_cosine"], columns=columns)


def a_front() -> pd.DataFrame:
    """Of `measures.front`."""
    row = {f"{measure}{end}": 50.0 for measure in ("clean", "autoattack") for end in ("", " low", " high")}
    return pd.DataFrame([{**row, "cost": 2.0, "front": True}], index=["raat"])


def an_audit() -> audit.Audit:
    """One sign, and a flag of AutoAttack's."""
    empty = {"figure": 0.0, "low": 0.0, "n": 100, "sign": False}
    rows = {name: {**empty, **check._asdict()} for name, check in audit.CHECKS.items()}
    rows["saturated outputs"] |= {"figure": 1.0, "low": 0.96, "sign": True}
    checks = pd.DataFrame.from_dict(rows, orient="index").rename_axis("check")
    accuracies = pd.DataFrame(
        {"accuracy": [0.8, 0.3], "low": [0.7, 0.2], "high": [0.9, 0.4], "n": [100, 40]},
        index=pd.Index(["no attack", "AutoAttack"], name="attack"),
    )
    curve = pd.DataFrame({"eps": [0.0, 8 / 255], "accuracy": [0.8, 0.3]})
    return audit.Audit("suspicious", checks, accuracies, curve, ("a flag to read",), 8 / 255, "linf")


def test_a_check_that_could_not_be_made_has_neither_figure_nor_answer(tmp_path: Path) -> None:
    found = an_audit()
    found.checks.loc["saturated outputs", ["figure", "low", "n", "sign"]] = [float("nan"), float("nan"), 0, False]
    text = report.audit_page(found, tmp_path).read_text()
    (row,) = re.findall(r"<tr><td>saturated outputs</td>.*?</tr>", text, re.DOTALL)
    assert re.findall(r"<td[^>]*>(.*?)</td>", row)[1:6] == ["–", "–", "0.5", "0", "–"]
    assert ">nan<" not in text


def test_an_audits_page_begins_with_verdict_and_bound_and_draws_each_sign(tmp_path: Path) -> None:
    found = an_audit()
    found.accuracies.loc["best of all"] = [0.25, 0.15, 0.36, 100]
    text = report.audit_page(found, tmp_path).read_text()
    verdict, bound, signs = (text.index(one) for one in ('"verdict">suspicious', "at most 25.0%", "what to do next"))
    assert verdict < bound < signs < text.index("<img")
    (drawn,) = re.findall(r"<svg role=.*?</svg>", text, re.DOTALL)
    low, threshold, figure = (float(re.findall(one, drawn)[0]) for one in (
        r'class="interval" x1="([\d.]+)%"', r'dasharray="2 3" x1="([\d.]+)%"', r'cx="([\d.]+)%"'))  # fmt: skip
    assert (low / figure, threshold / figure) == pytest.approx((0.96, 0.5))


@functools.cache
def a_notebook() -> nbformat.NotebookNode:
    """Words with an equation, and a figure with its words as a kernel leaves them."""
    picture = io.BytesIO()
    figures.sweep_curve(an_audit().curve, "linf").savefig(picture, format="png")
    shown = nbformat.v4.new_output(
        "display_data",
        {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": "<Figure>"},
        metadata={"image/png": {"alt": "Accuracy against the radius."}},
    )
    words = ["No heading.", r"# Radius $\varepsilon_2$ & <more>", r"The loss $\ell$.", "# Another"]
    cells = [*map(nbformat.v4.new_markdown_cell, words), nbformat.v4.new_code_cell("draw()", outputs=[shown])]
    return nbformat.v4.new_notebook(cells=cells)


def test_a_notebooks_page_has_its_first_heading_as_its_title_without_markup(tmp_path: Path) -> None:
    nbformat.write(a_notebook(), tmp_path / "mine.ipynb")
    text = report.notebook_page(tmp_path / "mine.ipynb").read_text()
    assert re.findall("<title>(.*)</title>", text) == ["Radius ε2 &amp;"]
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "mine.ipynb")
    assert "<title>mine</title>" in report.notebook_page(tmp_path / "mine.ipynb").read_text()


def audit_a_model(home: Path) -> None:
    """What `paperlib audit` leaves behind."""
    report.audit_page(an_audit(), home / "runs" / "audit" / "mine-01234567", {"model": "mine.py:build"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    for name in ("notebooks", "docs"):
        (home / name).symlink_to(REPOSITORY / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLIB_ROOT", str(home))
        yield built(home)


def built(home: Path) -> Path:
    for notebook, preset, paper in (
        ("raat_boundary", "quick", "raat"), ("raat_boundary", "laptop", "raat"), ("toy_pag", "quick", "pag"),
        ("toy_pag", "paper", "pag"), ("alignment_matrix", "quick", "alignment"), ("alignment_matrix", "gpu", "alignment"),
    ):  # fmt: skip
        on_cifar = {"data": "cifar10", "seeds": [0, 1], "eps_linf": 8 / 255}
        make_run(home, notebook, preset, paper, on_cifar if (notebook, preset) == ("raat_boundary", "laptop") else None)
    audit_a_model(home)
    return report.build()


def test_every_link_leads_to_a_file_of_the_site(site: Path) -> None:
    pages = sorted(site.parent.rglob("*.html"))
    published = list((REPOSITORY / "docs" / "results").glob("*.md"))
    assert len(pages) == 15 + len(published)  # the first, the ledger, an audit's, and two of each run
    for page in pages:
        text = re.sub(r"<style.*?</style>", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r'(?:href|src)="([^"]+)"', text):
            file, _, place = target.partition("#")
            if target.startswith("data:"):
                continue
            assert not file or (page.parent / file).exists(), f"{page}: {target}"
            if place and (page.parent / file).is_file():
                assert f'id="{place}"' in (page.parent / file).read_text(), f"{page}: {target}"
        if page.name in ("index.html", "claims.html"):
            assert not re.search(r"https?://", text)
        for image in re.findall(r"<img [^>]*>", text):
            least = 1 if page.parent.name == "published" else 10  # whose words are the authors' own
            assert re.search(rf'alt="[^"]{{{least},}}"', image), image
            assert "No description" not in image


def test_the_ledger_is_of_the_nearest_runs_and_counts_them(site: Path) -> None:
    text = site.with_name("claims.html").read_text()
    shown = re.findall(r'<tr data-paper="([^"]+)" data-outcome="([\w ]+)" data-preset="(\w+)"', text)
    ids = {paper: claims.load(paper)["claims"] for paper in ("raat", "pag", "alignment")}
    of_the_toy = sum(claim["notebook"] == "toy_pag" for claim in ids["pag"])
    assert len(shown) == 2 * len(ids["raat"]) + of_the_toy + 2 * len(ids["alignment"])
    assert {preset for paper, _, preset in shown if paper == name_of("raat")} == {"quick", "laptop"}  # on two data sets
    text = site.read_text()
    counts = counted(text)
    assert list(counts) == [name_of(paper) for paper in claims.papers()]
    for name, (own, published) in counts.items():
        found = [sum(row[:2] == (name, outcome) for row in shown) for outcome in OUTCOMES]
        assert own == (list(map(str, found)) if any(found) else ["–"] * 4)
        of = [result for result in published_claims() if name_of(result["paper"]) == name]
        found = [sum(claim["outcome"] == outcome for one in of for claim in one["claims"]) for outcome in OUTCOMES]
        assert published == (list(map(str, found)) if of else ["–"] * 4)
    assert re.search(r"mine\.py:build</td><td><a href=\"audit-mine-01234567/index.html\">.*\n<td>suspicious</td>", text)


def name_of(paper: str) -> str:
    return html.escape(claims.load(paper)["paper"]["title"], quote=False)


def counted(text: str) -> dict[str, tuple[list[str], list[str]]]:
    """The first page's counts by paper: of runs, and of published results."""
    body = text[text.index('class="counts"') : text.index("</table>")]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", body, re.DOTALL)]
    return {row[0]: (row[1:5], row[5:]) for row in rows if row}


def published_claims() -> list[dict[str, Any]]:
    """What docs/results has, by paper: a claim's id is of one paper alone where the folder's most are of it."""
    papers = {"pag": "pag", "toy": "pag", "gfa": "gfa", "raat": "raat", "daat": "daat", "matrix": "alignment"}
    results = REPOSITORY / "docs" / "results"
    return [{"paper": papers[file.relative_to(results).parts[0]], "claims": json.loads(file.read_text())}
            for file in results.rglob("claims.json")]  # fmt: skip


# The first page -----------------------------------------------------------------------


def a_claim(**changes: Any) -> dict[str, Any]:
    """A decided claim, as stored."""
    return {"id": "a", "place": "Table 1", "statement": "It holds.", "kind": "gain", "claimed": 3.0, "measured": 2.0,
            "low": 1.0, "high": 4.0, "outcome": "reproduced", "reason": "so it is", "scale": "", **changes}  # fmt: skip


@hypothesis.given(
    st.lists(st.tuples(*[st.floats(-100, 100).map(lambda number: round(number, 2))] * 4), min_size=1, max_size=6),
    st.sampled_from(["gain", "ratio"]),
)
def test_every_mark_of_a_forest_plot_lies_where_its_number_is(numbers: list[tuple[float, ...]], kind: str) -> None:
    names = ("low", "measured", "high", "claimed")
    rows = [a_claim(id=str(place), kind=kind, paper="P", **dict(zip(names, [*sorted(row[:3]), row[3]], strict=True)))
            for place, row in enumerate(numbers)]  # fmt: skip
    (plot,) = front.forests(rows)
    pairs = [(row[name], row["at"][name]) for row in plot["rows"] for name in names]
    pairs += [(float(kind == "ratio"), plot["none"]), *((float(text.removeprefix("× ")), x) for x, text in plot["ticks"])]
    (low, left), (high, right) = min(pairs), max(pairs)
    assert left < right or low == high
    for value, x in pairs:
        expected = left + (right - left) * (value - low) / (high - low) if high > low else left
        assert x == pytest.approx(expected, abs=0.02)
        assert front.EDGE <= x <= 100 - front.EDGE
    assert 1 <= len(plot["ticks"]) <= 6


def test_an_interval_without_end_ends_at_the_edge_and_a_missing_number_has_no_mark() -> None:
    (plot,) = front.forests([a_claim(paper="P", high="inf", claimed=None)])
    assert plot["rows"][0]["at"]["high"] == 100 - front.EDGE
    assert "claimed" not in plot["rows"][0]["at"]
    assert [(x, text) for x, text in plot["ticks"] if text == "0"] == [(plot["none"], "0")]


def test_the_first_page_draws_decided_claims_ours_beside_the_published(home: Path) -> None:
    run = make_run(home, "toy_pag", "quick", "pag")
    stored = json.loads((run.folder / "claims.json").read_text())
    ids = [claim["id"] for claim in stored]
    judged = [a_claim(id=ids[0], statement="Ours & theirs."), a_claim(id=ids[1], outcome="not tested here"),
              a_claim(id="mine", measured=-8.0, low=-9.0, high=-7.0, claimed=None, outcome="not reproduced")]  # fmt: skip
    write_json(run.folder / "claims.json", judged)
    place = home / "docs" / "results" / "toy"
    known = [a_claim(id=one, statement=f"{one}, published.", outcome="direction only") for one in ids]
    write_json(place / "claims.json", known)
    (place / "settings.yaml").write_text("preset: laptop\n")
    (place.parent / "pag.md").write_text("# Published $\\lambda$\n\n[verdicts](toy/claims.json), [code](../../x.py)")
    text = report.build().read_text()
    plots = re.findall(r'<table class="forest"><caption>(.*?)</caption>(.*?)</table>', text, re.DOTALL)
    assert [caption for caption, _ in plots[:2]] == [name_of("pag")] * 2
    row = r'<tr( class="published")?>\n<td><abbr title="([\w ]+)">(.)</abbr></td>\n<td>(.*?)<small>'
    assert re.findall(row, plots[0][1]) == [
        ("", "reproduced", "✓", "Ours &amp; theirs.<br>"),
        (' class="published"', "direction only", "↗", ""),
        ("", "not reproduced", "✗", "It holds.<br>"),
    ]
    others = [statement for *_, statement in re.findall(row, plots[1][1])]
    assert others == [f"{one}, published.<br>" for one in ids[1:]]
    # -9 to 4 over the width between the edges: the line of no difference, and the third row's mark.
    places = [
        float(re.findall(what, plots[0][1])[place]) for what, place in ((r'"none" x1="([\d.]+)', 0), (r'cx="([\d.]+)', 2))
    ]
    assert places == pytest.approx([front.EDGE + (100 - 2 * front.EDGE) * share for share in (9 / 13, 1 / 13)], abs=0.01)
    assert plots[0][1].count('class="claimed"') == 2
    published = home / "runs" / "report" / "published"
    assert "<title>Published λ</title>" in (published / "pag.html").read_text()
    assert (published / "toy" / "claims.json").exists()
    assert "x.py" not in (published / "pag.html").read_text()


def test_what_was_not_tested_is_folded_with_its_reason_and_the_preset_that_would_do(home: Path) -> None:
    run = make_run(home, "toy_pag", "quick", "pag")
    ids = [claim["id"] for claim in json.loads((run.folder / "claims.json").read_text())]
    judged = [
        a_claim(id=one, statement=f"{one}!", outcome="not tested here", reason=f"because of {one} & co") for one in ids
    ]
    write_json(run.folder / "claims.json", judged)
    power.show(run, studies.plan_of("toy_pag", run.settings))
    text = report.build().read_text()
    folded = text[text.index('<details id="left"><summary>') :]
    folded = folded[: folded.index("</details>")]
    found = re.findall(r'data-label="Claim">(.*?)</td>.*?"Why">(.*?)</td>.*?"Preset">(.*?)</td>', folded, re.DOTALL)
    assert [row[:2] for row in found] == [(f"{one}!", f"because of {one} &amp; co") for one in ids]
    plans = {preset: power.table("toy_pag", s, studies.plan_of("toy_pag", s)).set_index("id")["decides"]
             for preset in runs.PRESETS for s in (studies.resolve("toy_pag", preset),)}  # fmt: skip
    for claim, _, would_do in found:
        able = [preset for preset in runs.PRESETS if plans[preset][claim[:-1]] == "yes"]
        assert would_do == (able[0] if able and plans["quick"][claim[:-1]] == "no" else "–")
    assert {would_do for *_, would_do in found} == {"laptop", "–"}
    (run.folder / "plan.json").unlink()
    assert '"Preset">laptop' not in report.build().read_text()  # without the run's own plan nothing is known


@pytest.mark.parametrize(("own", "said", "expected"), [
    ("no", ["no", "yes", "yes"], "laptop"),
    ("not run at this preset", ["not run at this preset", "not said", "yes"], "gpu"),
    ("not run at this preset", ["not run at this preset", "no number", "no"],
     "run at laptop; whether that is enough cannot be told"),
    ("no", ["no", "not run at this preset", "no"], "no preset"),
    ("no", ["no", "no number", "no"], "–"),
    ("yes", ["yes", "yes", "yes"], "–"),  # left open for another reason
    (None, ["no", "yes", "yes"], "–"),
])  # fmt: skip
def test_a_preset_is_named_only_where_plans_say_so(own: str | None, said: list[str], expected: str) -> None:
    plans = {preset: pd.DataFrame({"decides": [word]}, index=["a"])
             for preset, word in zip(("quick", "laptop", "gpu"), said, strict=True)}  # fmt: skip
    assert left_open.would_do("a", own, plans) == expected


def test_robust_accuracy_is_under_the_attack_that_leaves_least_of_those_most_methods_were_put_to() -> None:
    values = {("raat", "clean"): (0.9, 100), ("raat", "pgd_10"): (0.5, 100), ("raat", "cw"): (0.4, 50),
              ("raat", "autoattack"): (0.1, 5), ("raat", "cw_ratio"): (0.0, 100), ("raat", "defect"): (0.0, 100),
              ("pgd_at", "clean"): (0.8, 100), ("pgd_at", "pgd_10"): (0.3, 100), ("pgd_at", "cw"): (0.35, 50),
              ("ablation", "clean"): (0.7, 100), ("ablation", "pgd_10"): (0.0, 100)}  # fmt: skip
    rows = [{"method": method, "measure": measure, "mean": mean, "low": mean - 0.05, "high": min(1.0, mean + 0.05), "n": n}
            for (method, measure), (mean, n) in values.items()]  # fmt: skip
    found = front.accuracies(rows)
    assert found is not None
    assert (found["attack"], found["sizes"]) == ("C&W", [100, 50])
    assert [(row["method"], row["clean"]["text"], row["robust"]["text"]) for row in found["rows"]] == [
        ("RAAT", "90.0", "40.0"), ("PGD-AT", "80.0", "35.0"),
    ]  # fmt: skip
    assert found["rows"][0]["robust"]["mean"] == pytest.approx(front.EDGE + 0.4 * (100 - 2 * front.EDGE))
    assert front.accuracies(rows[:1]) is None
    assert front.accuracies([]) is None


def test_a_runs_page_has_its_figures_before_its_verdicts_and_the_first_page_a_small_one(site: Path) -> None:
    text = next(site.parent.glob("raat_boundary-laptop-*/index.html")).read_text()
    assert 0 < text.index('id="figures"') < text.index("<h2>Verdicts</h2>")
    small = re.findall(r'<a href="([\w-]+)/index.html"><img src="([\w-]+)/(\w+)\.png"', site.read_text())
    assert len(small) == 6
    assert all(page == place for page, place, _ in small)
    assert {name for page, _, name in small if page.startswith("alignment")} == {"grid"}


def test_text_of_users_is_never_markup(home: Path) -> None:
    bad = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    place = home / f"of <i>{bad.replace('/', '')}" / "images"
    place.mkdir(parents=True)
    run = make_run(home, "raat_boundary", "quick", "raat", {"data": f"folder:{place.parent}"})
    stored = json.loads((run.folder / "claims.json").read_text())
    changes = dict.fromkeys(("statement", "place", "reason", "scale"), bad)
    write_json(run.folder / "claims.json", [{**row, **changes} for row in stored]
               + [a_claim(id=bad, statement=bad, reason=bad, scale=bad)])  # fmt: skip
    for name, key in (("measures.json", "method"), ("plan.json", "decides")):
        rows = json.loads((run.folder / name).read_text()) if name == "measures.json" else [{"id": bad, "decides": "no"}]
        write_json(run.folder / name, [{**row, key: f"{bad}{place}"} for place, row in enumerate(rows)])
    write_json(run.folder / "figures" / "accuracy.json", {"words": bad})
    write_json(run.folder / "status.json", {**json.loads((run.folder / "status.json").read_text()), "error": bad})
    index = report.build()
    for page in (index, index.with_name("claims.html"), next(index.parent.glob("raat*/index.html"))):
        text = page.read_text()
        assert "alert(1)" in text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "<i>" not in text


def test_of_runs_alike_in_their_differences_the_one_with_more_seeds_and_images_counts(home: Path) -> None:
    given: list[dict[str, object]] = [{"seeds": [0, 1]}, {}, {"seeds": [0, 1], "epochs": 1}]
    for values in given:
        make_run(home, "alignment_matrix", "laptop", "alignment", values)
    text = report.build().read_text()
    chosen = re.search(r'closest to its paper: <a href="alignment_matrix-(laptop-\w+)/', text)
    assert chosen is not None
    settings = yaml.safe_load((home / "runs" / "alignment_matrix" / chosen[1] / "settings.yaml").read_text())
    preset = studies.resolve("alignment_matrix", "laptop")
    assert (settings["seeds"], settings["epochs"]) == (preset.seeds, preset.epochs)


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
    lines = [line for line in (site.parent / "numbers.tex").read_text().splitlines() if not line.startswith("%")]
    found = dict(re.fullmatch(r"\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}", line).groups() for line in lines)  # type: ignore[union-attr]
    assert len(found) == len(lines)  # no name twice
    assert found["RaatBoundaryCifarOneZeroRaatAutoattack"] == "70.0 (65--75)"
    assert found["RaatBoundaryCifarOneZeroRaatPgdOneZero"] == "70.0 (65--75)"
    assert found["RaatBoundaryCifarOneZeroClaimRaatCleanVerdict"] in OUTCOMES
    assert re.fullmatch(r"[-$\d.]+( \(.*\))?", found["RaatBoundaryCifarOneZeroClaimRaatClean"])
    assert "RaatBoundaryScenesFourRaatAutoattack" in found
    assert "RaatBoundaryCifarOneZeroVanillaClean" not in found  # which none of its claims is of


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_takes_numbers_and_a_runs_table(site: Path) -> None:
    document = site.parent / "all.tex"
    document.write_text(
        r"\documentclass{article}\usepackage{booktabs,multirow}\input{numbers}\begin{document}"
        r"\RaatBoundaryCifarOneZeroRaatAutoattack\input{accuracy}\end{document}"
    )
    shutil.copy(next(site.parents[1].glob("raat_boundary/*/tables/accuracy.tex")), site.parent)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=site.parent, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode()[-2000:]


def test_models_are_in_robustbenchs_format(site: Path) -> None:
    names = json.loads((site.parent / "robustbench.json").read_text())
    entries = {name: json.loads((site.parent / name).read_text()) for name in names}
    raat = entries["robustbench/raat_boundary-cifar10-raat_seed0.json"]
    # The keys of RobustBench's own files, model_info/cifar10/Linf/*.json.
    assert set(raat) - {"footnote"} == {
        "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps",
        "clean_acc", "reported", "autoattack_acc", "unreliable",
    }  # fmt: skip
    assert (raat["clean_acc"], raat["autoattack_acc"], raat["eps"]) == ("70.00", "70.00", "8/255")
    paper = claims.load("raat")
    assert raat["reported"] == f"{paper['tables']['cifar10_resnet18_linf']['rows']['raat']['autoattack']:.2f}"
    assert raat["name"] == f"{paper['paper']['title']} (RAAT)"
    assert raat["link"] == "https://arxiv.org/abs/2604.26496"
    assert "100 images" in raat["footnote"]
    assert entries["robustbench/raat_boundary-scenes4-raat_seed0.json"]["reported"] is None  # the paper has no scenes
    in_matrix = entries["robustbench/alignment_matrix-cifar10-raat_seed0.json"]
    assert (in_matrix["authors"], in_matrix["reported"]) == (raat["authors"], None)  # of another protocol
    assert entries["robustbench/alignment_matrix-cifar10-pgd_at_seed0.json"]["authors"] == ""


def test_what_a_paper_reports_is_of_the_runs_own_case(home: Path) -> None:
    """CIFAR-100, and L2."""
    tables = claims.load("raat")["tables"]
    for given, case in (
        ({"data": "cifar100"}, "cifar100_resnet18_linf"),
        ({"data": "cifar10", "norm": "l2"}, "cifar10_resnet18_l2"),
    ):
        run = make_run(home, "raat_boundary", "laptop", "raat", given)
        assert json.loads((run.folder / "claims.json").read_text())[0]["case"] == case
        entry = export.leaderboard(run.folder)["raat_seed0"]
        assert entry["reported"] == f"{tables[case]['rows']['raat']['autoattack']:.2f}"


def test_every_paper_has_a_bibtex_entry(site: Path) -> None:
    text = (site.parent / "papers.bib").read_text()
    assert re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE) == [
        claims.load(one)["paper"]["key"] for one in claims.papers() if one != "alignment"
    ]
    assert "@inproceedings{pag," in text
    assert "year = {2023}" in text
    assert text.count("{") == text.count("}")
    assert "author = {Roy Ganz and Bahjat Kawar and Michael Elad}" in text
    assert "under review" not in text
    assert "eprint = {2511.13749}" in text
    assert export.command("gfa_landscape", "l2-10x") == "GfaLandscapeLTwoOneZerox"


def test_settings_lie_beside_a_runs_page(site: Path) -> None:
    for file in site.parent.glob("*/settings.yaml"):
        assert yaml.safe_load(file.read_text())["preset"] in ("quick", "laptop", "paper", "gpu")


# In a browser -------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def brightness(page: Any) -> int:
    """Of the top left corner of what is shown, 0 to 255."""
    return int(Image.open(io.BytesIO(page.screenshot())).convert("L").getpixel((1, 1)))


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
def test_an_audit_with_many_signs_prints_on_two_pages(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    found = an_audit()
    found.checks.loc[found.checks.index[::3], "sign"] = True
    for name in ("best of all", "noise", "FGSM", "PGD-20", "PGD-100", "PGD-20, n = 40"):
        found.accuracies.loc[name] = [0.25, 0.15, 0.36, 100]
    page = report.audit_page(found, tmp_path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page()
        shown.goto(page.as_uri())
        printed = shown.pdf(format="A4", margin=dict.fromkeys(("top", "bottom", "left", "right"), "1.5cm"))
        browser.close()
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
def test_pages_work_in_a_browser_without_an_error_or_a_request_to_elsewhere(site: Path) -> None:
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
        assert page.locator("details#left table").first.is_hidden()
        page.locator("details#left summary").click()
        assert page.locator("details#left table").first.is_visible()
        plots = [plot for plot in page.locator("table.forest").all() if plot.is_visible()]
        assert plots
        for plot in plots:  # one axis for the marks of all rows
            boxes = [svg.bounding_box() for svg in plot.locator(".plot > svg").all()]
            assert len({(round(box["x"]), round(box["width"])) for box in boxes if box}) == 1
        page.fill("form[data-table=runs] input[name=text]", "toy_pag")
        assert page.locator("#runs tbody tr:visible").count() == 2

        page.goto(site.with_name("claims.html").as_uri())
        rows = page.locator("#ledger tbody tr")
        everything = rows.count()
        told = page.locator("form.filter[data-table=ledger] output")
        assert told.inner_text() == f"{everything} of {everything}"

        page.select_option("select[name=paper]", claims.load("pag")["paper"]["title"])
        left = page.locator("#ledger tbody tr:visible").count()
        assert 0 < left < everything
        assert told.inner_text() == f"{left} of {everything}"
        page.fill("form[data-table=ledger] input[name=text]", "no such words")
        assert page.locator("#ledger tbody tr:visible").count() == 0
        page.fill("form[data-table=ledger] input[name=text]", "")
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

        narrow = browser.new_page(viewport={"width": 380, "height": 800}, color_scheme="dark")
        for file in sorted(site.parent.rglob("*.html")):
            page.goto(file.as_uri())
            page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
            widths = page.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
            assert min(widths, default=200) > 100, file
            narrow.goto(file.as_uri())
            narrow.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
            assert narrow.evaluate("document.documentElement.scrollWidth") <= 380, file  # nothing to scroll sideways for
            assert brightness(narrow) < 64, file
            assert brightness(page) > 192, file
        narrow.goto(site.as_uri())
        narrow.emulate_media(media="print")
        assert not narrow.locator("form.filter").first.is_visible()
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


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("settings.yaml", b"", "should be settings by name"), ("settings.yaml", b"[1]", "should be settings by name"),
     ("settings.yaml", b"a: [", "not YAML"), ("toy_pag.html", b"\xcd\x07", "not UTF-8 text"),
     ("status.json", b"", "not a JSON file")],
)  # fmt: skip
def test_the_damaged_file_is_named(
    name: str, content: bytes, words: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(home, "toy_pag", "quick", "pag").folder
    (folder / name).write_bytes(content)
    report.build()
    assert f"{folder / name}: {words}" in capsys.readouterr().err


def test_only_what_changed_is_made_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_run(home, "toy_pag", preset, "pag").folder for preset in ("quick", "paper")]
    site = report.build().parent
    pages = [site / f"toy_pag-{folder.name}" / "index.html" for folder in folders]
    assert made.current(site)

    def again() -> list[bool]:
        """Whether the site noticed, and which of the two pages were written."""
        before = [page.stat().st_ino if page.exists() else 0 for page in pages]
        noticed = not made.current(site)
        report.build()
        return [noticed, *(page.stat().st_ino != old for page, old in zip(pages, before, strict=True))]

    assert again() == [False, False, False]
    file = folders[0] / "claims.json"
    write_json(file, [{**claim, "reason": "another reason"} for claim in read_json(file)])
    assert again() == [True, True, False]
    assert "another reason" in pages[0].read_text()
    assert made.current(site)
    pages[1].write_text("edited")
    assert again() == [True, False, True]
    (pages[1].parent / "settings.yaml").unlink()
    assert again() == [True, False, True]
    for file in (home / "docs" / "results" / "mine.md", site / "index.html"):
        write_text(file, "# Mine")
        assert again() == [True, False, False]
    assert "Mine" in (site / "published" / "mine.html").read_text()
    (home / "notebooks").unlink()
    shutil.copytree(REPOSITORY / "notebooks", home / "notebooks")
    assert again() == [False, False, False]
    notebook = home / "notebooks" / "toy_pag.py"
    write_text(notebook, re.sub("^# # .*", "# # Another heading", notebook.read_text(), count=1, flags=re.MULTILINE))
    assert again() == [True, True, True]
    assert "Another heading" in pages[1].read_text()
    with FileLock(folders[1] / ".lock"):
        assert again() == [True, False, True]
    assert again() == [True, False, True]
    (folders[0] / "training" / "x").mkdir(parents=True)
    (folders[0] / "training" / "x" / "weights.safetensors").write_text("")
    assert again() == [False, False, False]
    write_text(site / made.KEPT, "[1")
    assert again() == [True, True, True]
    capsys.readouterr()
    (folders[1] / "plan.json").write_text("{")
    for _ in range(2):  # what is damaged is named each time
        report.build()
        assert "plan.json: not a JSON file" in capsys.readouterr().err
        assert not made.current(site)
    shutil.rmtree(folders[1])
    report.build()
    assert made.current(site)
    assert not capsys.readouterr().err


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


def test_the_readmes_picture_has_a_row_for_every_decided_claim_with_a_number() -> None:
    """Counted from the files, and drawn as far as they lie within the axis."""
    from paperlib.report import picture

    decided = [
        claim
        for file in (REPOSITORY / "docs" / "results").rglob("claims.json")
        for claim in json.loads(file.read_text())
        if claim["outcome"] != "not tested here" and claim["claimed"] is not None and claim.get("kind") != "ratio"
    ]
    assert sorted(row["statement"] for row in picture.rows()) == sorted(claim["statement"] for claim in decided)
    axis = picture.draw(picture.rows()).axes[0]
    assert len(axis.get_yticklabels()) == len(decided)
    low, high = axis.get_xlim()
    assert all(low < claim[name] < high for claim in decided for name in ("low", "high", "claimed"))


def test_links_in_a_run_are_not_followed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, secret = make_run(home, "raat_boundary", "quick", "raat").folder, home / "secret"
    for name in ("figures/accuracy.png", "figures", "settings.yaml", "tables/accuracy.json", "raat_boundary.html"):
        (folder / name).rename(secret)
        (folder / name).symlink_to(secret)
        report.build()
        assert f"{name} is a link" in capsys.readouterr().err
        assert not list((home / "runs" / "report").glob("raat_boundary-*"))
        (folder / name).unlink()
        secret.rename(folder / name)
    (folder / "training").symlink_to(home / "elsewhere")  # weights may lie on another disk
    report.build()
    assert list((home / "runs" / "report").glob("raat_boundary-*"))


def test_pages_to_share_name_no_folder_of_this_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user, images = home / "users" / "o'hara", home / "disk & co" / "images"
    images.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(user))
    run = make_run(home, "raat_boundary", "quick", "raat", {"data": f"folder:{images}"})
    told = f"KeyError in {user}/x.py with {images}"
    write_json(run.folder / "status.json", {**json.loads((run.folder / "status.json").read_text()), "error": told})
    page = run.folder / "raat_boundary.html"
    page.write_text(page.read_text().replace("</body>", f"<p>{html.escape(told)} {home}/notebooks</p></body>"))
    about = {"model": f"{user}/net.py:build", "weights": f"{user}/w.pt", "data": f"folder:{images}", "eps": "8/255"}
    report.audit_page(an_audit(), home / "runs" / "audit" / "net", about)
    site = report.build().parent
    texts = {file: file.read_text() for file in site.rglob("*.*") if file.suffix not in (".png", ".pdf")}
    assert sum("KeyError in …/x.py with …/images" in text for text in texts.values()) == 2
    assert sum("…/net.py:build" in text for text in texts.values()) == 2
    for file, text in texts.items():
        for place in (user, images.parent, home):
            assert str(place) not in text, file
            assert html.escape(str(place)) not in text, file
