"""What others can take into their own papers and leaderboards: LaTeX commands for every number, tables, JSON, BibTeX."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from paperlib.claims import load, papers
from paperlib.files import InputError, read_json, write_json, write_text

BASELINES = {"standard", "vanilla", "gradient_penalty", "pgd_at", "trades", "mart", "cons_at", "wa"}
DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


@contextmanager
def damaged_left_out(folder: Path) -> Iterator[None]:
    """Go on without a run whose files are not as a run writes them, and say so: one must not hide the others."""
    try:
        yield
    except (InputError, LookupError, TypeError, ValueError, AttributeError, OSError, yaml.YAMLError) as error:
        print(f"paperlib: {folder} is damaged and left out ({type(error).__name__}: {error})", file=sys.stderr)


def write(target: Path, runs: Mapping[str, Path]) -> dict[str, str]:
    """Write every export of the runs, whose folders are given by name, into `target`: in words what lies there, by file."""
    found: dict[str, str] = {}
    lines: list[str] = []
    models: list[tuple[str, dict[str, Any]]] = []
    for name, folder in runs.items():
        with damaged_left_out(folder):
            own, entries = numbers(folder, name), leaderboard(folder)
            lines, models = lines + own, models + [(name, entry) for entry in entries]
    if lines:
        write_text(target / "numbers.tex", "\n".join(["% A command for every number, by paperlib report.", *lines, ""]))
        found["numbers.tex"] = "a LaTeX command for every claimed and measured number"
    if tables := [(one, name) for name, folder in runs.items() for one in sorted((folder / "tables").glob("*.tex"))]:
        for file, name in tables:
            write_text(target / "tables" / f"{name}-{file.name}", file.read_text(encoding="utf-8"))
        inputs = [rf"\input{{tables/{name}-{file.stem}}}" for file, name in tables]
        write_text(target / "tables.tex", "\n".join(["% Needs booktabs and multirow.", *inputs, ""]))
        found["tables.tex"] = "every table as LaTeX (booktabs), in tables/"
    if models:
        files = [f"robustbench/{name}-{re.sub(r'[^A-Za-z0-9_.-]', '_', entry['name'])}.json" for name, entry in models]
        for file_, (_, entry) in zip(files, models, strict=True):
            write_json(target / file_, entry)
        write_json(target / "robustbench.json", files)
        found["robustbench.json"] = "each method in RobustBench's format, in robustbench/"
    write_text(target / "papers.bib", "\n".join(bibtex(load(paper)["paper"]) for paper in papers()))
    found["papers.bib"] = "the papers, for BibTeX"
    return found


def command(*parts: str) -> str:
    """A name that LaTeX takes: letters alone, each word capitalised, digits and the point between them spelt."""
    pointed = [re.sub(r"(?<=\d)\.(?=\d)", " Point ", part) for part in parts]
    words = [word for part in pointed for word in re.split(r"[^A-Za-z0-9]+", part) if word]
    return "".join(re.sub(r"\d", lambda digit: DIGITS[int(digit[0])], word[0].upper() + word[1:]) for word in words)


def numbers(folder: Path, run: str) -> list[str]:
    r"""LaTeX commands of a run by its name, one a line.

    \RunClaimId, with Low, High, Paper and Verdict after it, in points (or times); \RunMethodMeasure, with Low,
    High and Deviation, in percent (or times). What is no finite number has no command.
    """
    lines = []
    for claim in _stored(folder, "claims.json"):
        own = command(run, "claim", claim["id"])
        for name, suffix in (("measured", ""), ("low", "Low"), ("high", "High"), ("claimed", "Paper")):
            if isinstance(claim[name], float | int):  # what is no finite number is stored as a word
                lines.append(_define(own + suffix, f"{claim[name]:.1f}"))
        lines.append(_define(f"{own}Verdict", claim["outcome"]))
    for row in _stored(folder, "measures.json"):
        own = command(run, row["method"], row["measure"])
        for name, suffix in (("mean", ""), ("low", "Low"), ("high", "High"), ("deviation", "Deviation")):
            if isinstance(row[name], float | int):
                scale = 1 if row["measure"].endswith("_ratio") else 100
                lines.append(_define(own + suffix, f"{scale * row[name]:.1f}"))
    return list(dict.fromkeys(lines))


def _define(name: str, value: str) -> str:
    return rf"\newcommand{{\{name}}}{{{value}}}"


def leaderboard(folder: Path) -> list[dict[str, Any]]:
    """Each method that AutoAttack has seen, in the format of RobustBench's model_info.

    "name" is the method's; clean accuracy and AutoAttack's are means over seeds, in percent as text, as RobustBench has
    them; "reported" is what the paper says, where it says something; "unreliable" is what the audit calls masked. Of how
    many images and seeds stands in "footnote". Baselines have no authors here.
    """
    values = {(row["method"], row["measure"]): row for row in _stored(folder, "measures.json")}
    settings = yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8")) if values else {}
    if "data" not in settings:  # nothing was measured, or only on the toy
        return []
    ledger = next((load(paper) for paper in papers() if folder.parent.name in load(paper)["scale"]), None)
    own = {name for table in (ledger or {}).get("tables", {}).values() for name in table["rows"]} - BASELINES
    kinds = {"autoattack": settings.get("norm", "linf"), "autoattack_linf": "linf", "autoattack_l2": "l2"}
    entries = []
    for method in dict.fromkeys(method for method, _ in values):
        for measure, norm in kinds.items():
            if (method, measure) not in values or (method, "clean") not in values:
                continue
            clean, robust = values[method, "clean"], values[method, measure]
            about = ledger["paper"] if ledger and method in own else {"authors": [], "venue": ""}
            checked = folder / "audit" / f"{method}.json"
            masked = checked.exists() and read_json(checked).get("verdict") == "masked"
            seen = f"AutoAttack ({norm}) on {robust['n']} images, {robust['seeds']} seeds, preset {settings['preset']}"
            entries.append(
                {
                    "link": "", "name": method if measure == "autoattack" else f"{method}_{norm}",
                    "authors": ", ".join(about["authors"]), "additional_data": False, "number_forward_passes": 1,
                    "dataset": settings["data"].rstrip("/").rpartition("/")[2], "venue": about["venue"],
                    "architecture": f"{settings['model']}, width {settings['width']}",
                    "eps": f"{255 * settings['eps_linf']:g}/255" if norm == "linf" else f"{settings['eps_l2']:g}",
                    "clean_acc": f"{100 * clean['mean']:.2f}", "reported": _reported(ledger, method, measure),
                    "autoattack_acc": f"{100 * robust['mean']:.2f}", "unreliable": masked, "footnote": seen,
                }
            )  # fmt: skip
    return entries


def _reported(ledger: Mapping[str, Any] | None, method: str, measure: str) -> str | None:
    for table in (ledger or {}).get("tables", {}).values():
        if (value := table["rows"].get(method, {}).get(measure)) is not None:
            return f"{value:.2f}"
    return None


def bibtex(paper: Mapping[str, Any]) -> str:
    """A BibTeX entry from a ledger's `paper`: key, title, authors (a list, empty where they are not known), venue."""
    fields = {"title": f"{{{_escaped(paper['title'])}}}", "howpublished": _escaped(str(paper["venue"]))}
    if paper["authors"]:
        fields["author"] = " and ".join(map(_escaped, paper["authors"]))
    if number := re.search(r"arXiv[: ](\d{4}\.\d{4,5})", str(paper["venue"])):
        fields |= {"eprint": number[1], "archiveprefix": "arXiv"}
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@misc{{{paper['key']},", *lines, "}", ""])


def _escaped(text: str) -> str:
    return re.sub(r"([&%#_$])", r"\\\1", text)


def _stored(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / name
    return list(read_json(file)) if file.exists() else []
