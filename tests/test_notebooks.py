"""The example notebooks are fit to be opened by anybody: valid, free of outputs, steps named."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
DURABLE = re.compile(r"^%%durable[ \t]+([a-z][a-z0-9_]*)\b")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    """Each notebook of the repository."""
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_is_an_example_notebook() -> None:
    """The notebook that `make demo` runs is there."""
    assert "01-flights.ipynb" in [path.name for path in NOTEBOOKS]


def test_is_valid_nbformat_with_unique_cell_ids(notebook: nbformat.NotebookNode) -> None:
    """Every front end can open it: valid nbformat 4.5 or later, and no cell id twice."""
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))


def test_is_stored_without_outputs(notebook: nbformat.NotebookNode) -> None:
    """What is committed is source only, so that a diff shows what a person changed."""
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert "execution" not in cell.metadata


def test_names_no_place_on_this_machine(notebook: nbformat.NotebookNode) -> None:
    """It runs anywhere: any Python 3 kernel, no absolute path."""
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not re.search(r"(?:/home/|/Users/|/work/|/tmp/|[A-Z]:\\\\)", cell.source)


def test_durable_cells_have_short_unique_names(notebook: nbformat.NotebookNode) -> None:
    """A cell's name is its key in the store, so two cells never share one; each is one short word or two."""
    first_lines = [cell.source.splitlines()[0] for cell in code_cells(notebook) if "%%durable" in cell.source]
    names = [match.group(1) for line in first_lines if (match := DURABLE.match(line))]
    assert len(names) == len(first_lines)
    assert len(names) == len(set(names))
    assert all(len(name) <= 16 for name in names)


def test_sql_reads_tables_that_the_notebook_records(notebook: nbformat.NotebookNode) -> None:
    """A table `step.variable` in the SQL cells is a variable that the durable cell of that name binds."""
    bodies = {
        match.group(1): cell.source
        for cell in code_cells(notebook)
        if (match := DURABLE.match(cell.source.splitlines()[0]))
    }
    queries = [cell.source for cell in code_cells(notebook) if "nbflow.sql(" in cell.source]
    tables = [table for query in queries for table in re.findall(r"\b(?:from|join)\s+(\w+)\.(\w+)", query)]
    for step, variable in tables:
        assert re.search(rf"^{variable} = |^{variable},|, {variable}\b", bodies[step], re.MULTILINE)
