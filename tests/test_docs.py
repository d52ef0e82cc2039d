"""The docs tell the truth: generated parts are up to date, links lead somewhere, promises have their tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])

_LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    """A relative link names a file that exists, and an anchor names a heading of it."""
    broken = []
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in _LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (
            anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8"))
        ):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_reached_from_the_index() -> None:
    """A page that nothing links to is read by nobody."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [
        page.name for page in DOCS.glob("*.md") if page.name != "index.md" and f"({page.name})" not in index
    ] == []


def test_generated_parts_are_up_to_date() -> None:
    """Commands, options, exit codes and state diagrams in the docs are those of the program."""
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def promises() -> list[tuple[str, str]]:
    """Each line of guarantees.md that promises something, with the tests that it names."""
    lines = (DOCS / "guarantees.md").read_text(encoding="utf-8").splitlines()
    return [
        (line.split("|")[1].strip(), line.split("|")[2])
        for line in lines
        if re.match(r"\| (?!promise|-)", line)
    ]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds) and node.name.startswith("test_")}


@pytest.mark.parametrize(("promise", "proof"), promises(), ids=lambda text: text[:40])
def test_every_promise_names_a_test_that_exists(promise: str, proof: str) -> None:
    """A promise without a test is not on the page."""
    named = re.findall(r"\[`?(test_\w+)`?\]\(\.\./(tests/[\w/]+\.py)\)", proof)
    assert named, f"{promise}: no test is linked"
    for test, file in named:
        assert test in names_in(ROOT / file), f"{promise}: {file} has no {test}"


def test_guarantees_has_promises() -> None:
    """The parametrised test above cannot pass by finding nothing."""
    assert len(promises()) >= 10


def test_every_dependency_has_its_reason() -> None:
    """Each package in pyproject.toml has one line in dependencies.md, in its own table, and none is left over."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (DOCS / "dependencies.md").read_text(encoding="utf-8")
    declared = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, requirements in declared.items():
        start = f"Extra `{extra}`." if extra else "Run time."
        part = re.split(r"\n(?=Extra )", page[page.index(start) :])[0]
        reasons = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", part, re.MULTILINE))
        reasons.pop("package", None)
        names = {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in requirements} - {"nbflow"}
        assert set(reasons) == names, extra or "run time"


def test_every_requirement_of_the_package_has_a_lower_bound_that_is_tested() -> None:
    """`make test-lowest` installs exactly what pyproject.toml calls the lowest."""
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "lowest"), str(ROOT / "pyproject.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("picture", sorted((DOCS / "images").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_can_be_read_without_seeing_them(picture: Path) -> None:
    """Each is well-formed, has a title and a description, and colours for dark pages too."""
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(picture).getroot()
    assert root.get("role") == "img"
    assert (root.findtext(f"{svg}title") or "").strip()
    assert (root.findtext(f"{svg}desc") or "").strip()
    assert "prefers-color-scheme: dark" in picture.read_text(encoding="utf-8")


def test_the_tables_are_documented_column_by_column(tmp_path: Path) -> None:
    """tables.md lists the columns of each view in their order and with their types, no more and no less."""
    import duckdb

    from nbflow.store.local import open_store

    place = tmp_path / ".nbflow"
    store = open_store(place)
    store.ingest()
    store.sql("select 1")
    store.close()
    page = (DOCS / "tables.md").read_text(encoding="utf-8")
    documented = {}
    for part in re.split(r"\n(?=## )", page):
        heading = re.match(r"## `(\w+)`", part)
        if heading:
            documented[heading[1]] = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", part, re.MULTILINE)
    with duckdb.connect(str(place / "store.duckdb"), read_only=True) as database:
        views = database.execute(
            "select view_name from duckdb_views() where schema_name = 'main' and not internal order by view_name"
        ).fetchall()
        actual = {
            name: [(row[0], row[1]) for row in database.execute(f"describe {name}").fetchall()]
            for (name,) in views
        }
    assert documented == actual


def test_nothing_in_the_repository_names_a_package_index() -> None:
    """Where packages come from is the business of whoever installs them."""
    files = [*ROOT.glob("*.toml"), ROOT / "Makefile", *(ROOT / ".ci").iterdir(), *(ROOT / "binder").iterdir()]
    named = [
        str(file) for file in files if re.search(r"index-url|find-links|pypi\.org|--index", file.read_text())
    ]
    assert named == []
