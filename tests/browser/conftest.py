"""One real JupyterLab, one real Chromium and one page a file; every test has a folder, a store and a notebook of its own.

What a test needs and the machine lacks is a reason to skip, and in continuous
integration (`CI` or `NBFLOW_CI`) an error: a promise that nobody checked is none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")
pytest.importorskip("jupyterlab")

from playwright.sync_api import Browser, Page

from tests.browser import lab_kit
from tests.browser.lab_kit import Desk, JupyterServer, NotebookPage


def missing(reason: str) -> Any:
    """Skip, or fail where everything has to be there."""
    if os.environ.get("CI") or os.environ.get("NBFLOW_CI"):
        pytest.fail(f"{reason} In continuous integration that is an error.", pytrace=False)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Try a browser test that fails once more: on a busy machine a page may be late, a promise is broken twice."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    executable = lab_kit.find_chromium()
    if executable is None:
        missing("No Chromium here; `.ci/browser` says how to get one, or set NBFLOW_CHROMIUM.")
    with lab_kit.chromium(str(executable)) as started:
        yield started


@pytest.fixture(scope="module")
def frame() -> lab_kit.Frame:
    """Which front end the file is about."""
    return "lab"


@pytest.fixture(scope="module")
def server(
    frame: lab_kit.Frame, tmp_path_factory: pytest.TempPathFactory, browser: Browser, _own_data_dir: Path
) -> Iterator[JupyterServer]:
    """A real server on loopback."""
    with lab_kit.jupyter_server(frame, tmp_path_factory.mktemp(frame)) as started:
        yield started


@pytest.fixture(scope="module")
def desk(browser: Browser, server: JupyterServer) -> Iterator[Desk]:
    """Opens pages."""
    opened = Desk(browser, server)
    yield opened
    opened.close_all()


@pytest.fixture(scope="module")
def lab_page(desk: Desk) -> Page:
    """The page that the tests of a file share: each opens its own notebooks in it."""
    return desk.application()


@pytest.fixture
def folder(server: JupyterServer, request: pytest.FixtureRequest) -> Path:
    """The folder of this test in the server's: its notebooks, and their store `.nbflow`."""
    name = re.sub(r"\W+", "-", request.node.name).strip("-")[:60]
    place = server.root / name
    while place.exists():  # the test is tried once more
        place = place.with_name(f"{place.name}-again")
    place.mkdir()
    (place / ".nbflow").mkdir()
    return place


@pytest.fixture
def show(
    desk: Desk, lab_page: Page, folder: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., NotebookPage]]:
    """Open a notebook of these cells, `show("one", "print(1)")`, or the file of that name if there are none."""
    opened: list[NotebookPage] = []

    def open_one(name: str, *sources: str, kernel: str = "python3", **options: Any) -> NotebookPage:
        path = folder / f"{name}.ipynb"
        if sources:
            lab_kit.write_notebook(path, *sources, kernel=kernel)
        if "page" not in options:
            options["page"] = lab_page
        notebook = desk.open(str(path.relative_to(desk.server.root)), **options)
        opened.append(notebook)
        return notebook

    yield open_one
    for notebook in reversed(opened):
        if notebook.page in desk.pages:
            notebook.close()
    for page in [page for page in desk.pages if page is not lab_page]:
        desk.close(page)


@pytest.fixture
def shots() -> Path:
    """Where pictures go that are for people: `NBFLOW_SCREENSHOTS`, else a folder of this session."""
    place = Path(os.environ.get("NBFLOW_SCREENSHOTS") or Path(os.environ["NBFLOW_DATA_DIR"]).parent / "shots")
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add a picture of every page, and what their consoles said, to the report of a failure."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.when != "call" or not report.failed:
        return
    desk = getattr(item, "funcargs", {}).get("desk") or _desk_of(item)
    if desk is None:
        return
    place = Path(os.environ.get("NBFLOW_FAILURES") or item.config.rootpath / ".pytest_cache" / "browser")
    place.mkdir(parents=True, exist_ok=True)
    said = []
    for number, page in enumerate(desk.pages):
        picture = place / f"{re.sub(r'[^A-Za-z0-9]+', '-', item.nodeid)[-120:]}-{number}.png"
        try:
            page.screenshot(path=picture, timeout=10_000)
        except Exception as error:  # the page may be gone, and the failure itself matters more
            said.append(f"no picture of page {number}: {error}")
        else:
            said.append(str(picture))
    report.sections.append(("pages", "\n".join(said)))
    report.sections.append(("browser console", "\n".join(desk.console[-40:])))


def _desk_of(item: pytest.Item) -> Desk | None:
    request = getattr(item, "_request", None)
    try:
        found = request.getfixturevalue("desk") if request and "desk" in request.fixturenames else None
    except Exception:  # the fixture itself failed
        return None
    return found if isinstance(found, Desk) else None
