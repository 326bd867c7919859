"""Exports for papers and leaderboards: LaTeX commands for every number, RobustBench's JSON, BibTeX."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paperlib.claims import load, paper_of, papers
from paperlib.figures.names import in_points, title, with_interval
from paperlib.figures.tables import latex
from paperlib.runs.files import read_json, read_yaml, write_json, write_text
from paperlib.runs.overview import damaged_left_out
from paperlib.runs.run import read_presets

BASELINES = {"standard", "vanilla", "gradient_penalty", "pgd_at", "trades", "mart", "cons_at", "wa"}
OURS = "this project"  # the venue in ledgers of the project's own claims
ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def write(target: Path, runs: Mapping[str, Path]) -> dict[str, str]:
    """Write all exports of the runs, given as folders by name, into `target`. Return a description of each file."""
    found: dict[str, str] = {}
    lines: list[str] = []
    models: dict[str, dict[str, Any]] = {}
    for name, folder in runs.items():
        with damaged_left_out(folder):
            commands, entries = numbers(folder, name), leaderboard(folder)
            lines += commands
            models |= {f"robustbench/{name}-{model}.json": entry for model, entry in entries.items()}
    if lines:
        write_text(
            target / "numbers.tex",
            "\n".join(["% A command for each number that a paper cites, written by paperlib report.", *lines, ""]),
        )
        found["numbers.tex"] = "a LaTeX command for each claim's number and verdict, and for the values that it compares"
    if models:
        for file_, entry in models.items():
            write_json(target / file_, entry)
        write_json(target / "robustbench.json", list(models))
        found["robustbench.json"] = "each model in RobustBench's format, in the folder robustbench/"
    known = [bibtex(about) for paper in papers() if (about := load(paper)["paper"])["venue"] != OURS]
    write_text(target / "papers.bib", "\n".join(known))
    found["papers.bib"] = "the papers as BibTeX entries"
    return found


def command(*parts: str) -> str:
    """Return a valid LaTeX command name: capitalised words without separators; digits and decimal points as words."""
    pointed = [re.sub(r"(?<=\d)\.(?=\d)", " Point ", part) for part in parts]
    words = [word for part in pointed for word in re.split(r"[^A-Za-z0-9]+", part) if word]
    return "".join(re.sub(r"\d", lambda digit: DIGITS[int(digit[0])], word[0].upper() + word[1:]) for word in words)


def numbers(folder: Path, run: str) -> list[str]:
    r"""Return definitions of a run's LaTeX commands, one per line, below a comment that names the run.

    \RunClaimId is a claim's measured difference in points (or ratio) with its 95 % interval. The suffixes Paper and
    Verdict give the paper's value and the verdict. \RunMethodMeasure is a value that a claim compares, or clean accuracy,
    in percent (or as a ratio). NaN has no command. All other numbers are in tables/ and measures.json.
    """
    found: dict[str, str] = {}
    stored = {claim["id"]: claim for claim in _stored(folder, "claims.json")}
    for name, claim in stored.items():
        base = command(run, "claim", name)
        if number := _number(claim, "measured"):
            found[base] = number
        if isinstance(claim["claimed"], float | int):
            found[f"{base}Paper"] = latex(with_interval(claim["claimed"], math.nan, math.nan))
        found[f"{base}Verdict"] = latex(str(claim["outcome"]))
    paper = paper_of(folder.parent.name) if stored else None
    known = [claim for claim in (load(paper)["claims"] if paper else []) if claim["id"] in stored]
    cited = {
        (claim[side], measure) for claim in known for side in ("method", "than") for measure in (claim["measure"], "clean")
    }
    for row in _stored(folder, "measures.json"):
        pair = row["method"], row["measure"]
        if pair in cited and (number := _number(row, "mean", in_points(row["measure"], 1.0))):
            found[command(run, *pair)] = number
    named = " ".join(f"% {run}: {folder.parent.name}, {folder.name}".split())  # a folder's name may contain a newline
    return [named, *(rf"\newcommand{{\{name}}}{{{value}}}" for name, value in found.items())]


def _number(row: Mapping[str, Any], name: str, scale: float = 1.0) -> str:
    """Return the number and its interval as LaTeX; empty for NaN. Numbers that are not finite are stored as text."""
    found = (scale * row[part] if isinstance(row[part], float | int) else math.nan for part in (name, "low", "high"))
    value, low, high = found
    return "" if math.isnan(value) else latex(with_interval(value, low, high))


def leaderboard(folder: Path) -> dict[str, dict[str, Any]]:
    """Return each model evaluated with AutoAttack in RobustBench's model_info format, by method, norm and seed.

    "name" is the paper's title and the method. Accuracies are in percent, as text. "reported" is the paper's number for
    this data set, network and norm, or None. "unreliable" is true if the first seed's audit found masked gradients.
    "footnote" gives the numbers of images. Baselines have no authors.
    """
    values = {(row["method"], row["measure"]): row for row in _stored(folder, "measures.json")}
    settings = read_yaml(folder / "settings.yaml") if values else {}
    if "data" not in settings:  # no measures, or toy data only
        return {}
    kinds = {"autoattack": settings.get("norm", "linf"), "autoattack_linf": "linf", "autoattack_l2": "l2"}
    entries, reported = {}, _reported(folder, settings["data"])
    for method in dict.fromkeys(method for method, _ in values):
        about = _paper_of(method)
        checked = folder / "audit" / f"{method}.json"
        masked = checked.exists() and read_json(checked).get("verdict") == "masked"
        for measure, norm in kinds.items():
            if (method, measure) not in values or (method, "clean") not in values:
                continue
            clean, robust = values[method, "clean"], values[method, measure]
            if "by_seed" not in clean or "by_seed" not in robust:  # older versions stored the mean of several models
                continue
            means = zip(clean["by_seed"], robust["by_seed"], strict=True)
            key = method if measure == "autoattack" else f"{method}_{norm}"
            seen = f"AutoAttack ({norm}) on {robust['n']} images, clean on {clean['n']}, preset {settings['preset']}"
            seeds = clean.get("seed_list", settings["seeds"])  # some methods are trained with the first seeds alone
            for seed, (right, left) in zip(seeds, means, strict=False):
                entries[re.sub(r"[^A-Za-z0-9_.-]", "_", f"{key}_seed{seed}")] = {
                    **{name: about[name] for name in ("link", "name", "venue")}, "authors": ", ".join(about["authors"]),
                    "dataset": settings["data"].rstrip("/").rpartition("/")[2],
                    "additional_data": False, "number_forward_passes": 1,
                    "architecture": f"{settings['model']}, width {settings['width']}",
                    "eps": f"{255 * settings['eps_linf']:g}/255" if norm == "linf" else f"{settings['eps_l2']:g}",
                    "clean_acc": f"{100 * right:.2f}", "reported": reported.get((method, measure)),
                    "autoattack_acc": f"{100 * left:.2f}", "unreliable": masked, "footnote": seen,
                }  # fmt: skip
    return entries


def _paper_of(method: str) -> dict[str, Any]:
    """Return name, authors, venue and link of a method's paper; empty for baselines and combinations."""
    for paper in papers():
        ledger = load(paper)
        listed = {name for table in ledger["tables"].values() for name in table["rows"]}
        own = (listed or {claim["method"] for claim in ledger["claims"]}) - BASELINES
        if ledger["paper"]["venue"] != OURS and method.removesuffix("_equal") in own:
            number = ARXIV.search(ledger["paper"]["venue"])
            link = f"https://arxiv.org/abs/{number[1]}" if number else ""
            return {**ledger["paper"], "name": f"{ledger['paper']['title']} ({title(method)})", "link": link}
    return {"name": title(method), "authors": [], "venue": "", "link": ""}


def _reported(folder: Path, data: str) -> dict[tuple[str, str], str]:
    """Return the paper's accuracies on the run's data set, by method and measure; empty if it reports none.

    If the tables differ in network and norm, the case of the run's claims selects the table.
    """
    notebook = folder.parent.name
    paper = paper_of(notebook)
    case = next((str(claim["case"]) for claim in _stored(folder, "claims.json") if "case" in claim), data)
    if paper is None or not f"{case}_".startswith(f"{data}_"):  # its claims were judged by another data set's table
        return {}
    named = [claim["claimed"] for claim in load(paper)["claims"] if claim["notebook"] == notebook and "claimed" in claim]
    tables = {of.get(case) for of in named if isinstance(of, dict)}
    if data == read_presets(notebook)["paper"]["data"]:
        tables |= {of for of in named if isinstance(of, str)}
    known = [load(paper)["tables"][table]["rows"] for table in load(paper)["tables"] if table in tables]
    return {(method, name): f"{value:.2f}" for rows in known for method, row in rows.items() for name, value in row.items()}


def bibtex(paper: Mapping[str, Any]) -> str:
    """Return a BibTeX entry from a ledger's `paper`: key, title, authors (empty if unknown), venue, year."""
    venue, number = str(paper["venue"]), ARXIV.search(str(paper["venue"]))
    fields = {"title": f"{{{_escaped(paper['title'])}}}", **({"year": str(paper["year"])} if "year" in paper else {})}
    if paper["authors"]:
        fields["author"] = " and ".join(map(_escaped, paper["authors"]))
    kind = "misc" if number or venue == "not published" else "inproceedings"
    fields |= {"howpublished" if kind == "misc" else "booktitle": _escaped(venue)}
    if number:
        fields |= {"eprint": number[1], "archiveprefix": "arXiv"}
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{paper['key']},", *lines, "}", ""])


def _escaped(text: str) -> str:
    return re.sub(r"([&%#_$])", r"\\\1", text)


def _stored(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / name
    return list(read_json(file)) if file.exists() else []
