"""A real JupyterLab or Notebook 7 on loopback and a real Chromium, with the few moves that a user makes.

Importable by every browser test; nothing here knows what nbflow's views look
like, except that they live under the class `nbflow`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
OLD_KERNEL = "6.30.1"

#: Seconds for something that a loaded machine of two cores surely does; what is waited for shows at once.
PATIENCE = 60.0

#: Chromium without what it does by itself on the network.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-prefers-reduced-motion",
    "--hide-scrollbars",
]

#: What JupyterLab does on its own account: news, updates, language servers, questions before a restart.
SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/apputils-extension/sessionDialogs": {"skipKernelRestartDialog": True},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
UNUSED = [
    "@jupyterlab/extensionmanager-extension",
    "@jupyterlab/scheduler",
    "@jupyterlab/apputils-extension:announcements",
]

Frame = Literal["lab", "notebook"]

# What is expected shows at once on a quiet machine; on a busy one it takes its time.
expect.set_options(timeout=20_000)


def until(ask: Callable[[], Any], *, seconds: float = PATIENCE, what: str = "") -> Any:
    """Return the first true answer; fail with the last one when the time is over."""
    ends = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < ends, f"not within {seconds} s: {what or ask} (last: {answer!r})"
        time.sleep(0.03)
    return answer


# --- the browser ----------------------------------------------------------------------------------


def find_chromium() -> str | None:
    """Return the path of a Chromium of this machine, playwright's own included; None where there is none."""
    named = os.environ.get("NBFLOW_CHROMIUM")
    if named:
        return named
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    for place in (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ):
        if Path(place).exists():
            return place
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@contextmanager
def chromium(executable: str) -> Iterator[Browser]:
    """Run a headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


# --- the server -----------------------------------------------------------------------------------


@dataclass
class JupyterServer:
    """A running server: `root` is the folder that it shows."""

    frame: Frame
    url: str
    token: str
    root: Path
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> Any:
        """Ask the server's REST interface."""
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.url}{path}", headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
            return json.loads(answer.read())

    def kernel_process(self, path: str) -> psutil.Process:
        """Return the process of the kernel of a notebook."""
        kernel = next(s["kernel"]["id"] for s in self.get("api/sessions") if s["path"] == path)
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if any(kernel in part for part in process.cmdline()):
                return process
        raise AssertionError(f"no process has kernel {kernel} of {path}")


def kernel_spec(folder: Path, name: str, display: str, env: dict[str, str]) -> None:
    """Write a kernelspec of this interpreter."""
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": display,
        "language": "python",
        "env": env,
        "metadata": {"debugger": False},
    }
    place = folder / "kernels" / name
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps(spec))


def find_old_kernel() -> Path | None:
    """Return the folder that holds ipykernel 6.30 (`.ci/browser` makes it); None where it is missing."""
    place = Path(os.environ.get("NBFLOW_OLD_KERNEL") or Path(sys.prefix) / "old-kernel")
    return place if (place / "ipykernel").is_dir() else None


@contextmanager
def jupyter_server(frame: Frame, home: Path) -> Iterator[JupyterServer]:
    """Run a server with all its files in `home`; kernels "python3" (the newest) and, if there is one, "old"."""
    root, config, data, runtime = (home / name for name in ("root", "config", "data", "runtime"))
    for folder in (root, config / "labconfig", data, runtime):
        folder.mkdir(parents=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if old := find_old_kernel():
        kernel_spec(
            data,
            "old",
            f"Python 3 (ipykernel {OLD_KERNEL})",
            {"PYTHONPATH": os.pathsep.join([str(old), path])},
        )
    (config / "labconfig" / "page_config.json").write_text(
        json.dumps({"disabledExtensions": dict.fromkeys(UNUSED, True)})
    )
    for plugin, values in SETTINGS.items():
        place = home / "settings" / f"{plugin}.jupyterlab-settings"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(values))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    # A kernel finds its store beside the notebook, as a user's does.
    for name in ("NBFLOW_STORE", "NBFLOW_NOTEBOOK"):
        environment.pop(name, None)
    environment |= {
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTER_DATA_DIR": str(data),
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "PYTHONPATH": path,
    }
    app = "LabApp" if frame == "lab" else "JupyterNotebookApp"
    token = "a-token-of-the-tests"
    command = [
        sys.executable, "-m", f"jupyter{frame}" if frame == "lab" else "notebook",
        "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}",
        f"--{app}.expose_app_in_browser=True", "--LabApp.extension_manager=readonly", "--LabApp.news_url=None",
        "--ServerApp.jpserver_extensions={'jupyter_scheduler': False}",
    ]  # fmt: skip
    log = home / "server.log"
    with log.open("wb") as written:
        process = subprocess.Popen(command, env=environment, cwd=root, stdout=written, stderr=written)
    try:
        told = until(lambda: _told(process, runtime, log), what="the server's own file")
        yield JupyterServer(frame, told["url"], token, root, process, log)
    finally:
        _end(process)


def _told(process: subprocess.Popen[bytes], runtime: Path, log: Path) -> dict[str, Any] | None:
    assert process.poll() is None, f"the server ended:\n{log.read_text()[-3000:]}"
    for place in runtime.glob("jpserver-*.json"):
        try:
            told: dict[str, Any] = json.loads(place.read_text())
        except ValueError:  # being written
            return None
        return told
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and its kernels, and nothing else."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=5)
    for each in alive:
        each.kill()
    psutil.wait_procs(alive, timeout=5)


# --- notebooks ------------------------------------------------------------------------------------


def write_notebook(path: Path, *sources: str, kernel: str = "python3") -> Path:
    """Write a notebook of these cells; a source that begins with `#md ` is prose."""
    cells = [
        new_markdown_cell(source[4:], id=f"cell-{number}")
        if source.startswith("#md ")
        else new_code_cell(source, id=f"cell-{number}")
        for number, source in enumerate(sources)
    ]
    notebook = new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def with_kernel(source: Path, target: Path, kernel: str = "python3") -> Path:
    """Copy a notebook, for another kernel."""
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata.kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    return target


# --- pages ----------------------------------------------------------------------------------------

_OPEN = """async ([path, kernel]) => {
    const app = window.jupyterapp;
    await app.restored;
    const panel = await app.commands.execute('docmanager:open', {path, factory: 'Notebook'});
    await panel.context.ready;
    await panel.revealed;
    if (kernel) {
        await panel.sessionContext.ready;
        const session = panel.sessionContext.session;
        if (session && session.kernel) await session.kernel.info;
    }
    app.shell.activateById(panel.id);
}"""

#: The panel of the notebook of a path, in JupyterLab and in Notebook 7.
_PANEL = """
    const found = [];
    for (const widget of window.jupyterapp.shell.widgets('main'))
        if (widget.context && widget.context.path === path) found.push(widget);
    const panel = found[0];
"""


@dataclass
class NotebookPage:
    """One notebook that is open in one page."""

    page: Page
    server: JupyterServer
    path: str
    console: list[str] = field(default_factory=list)

    # What the user does.

    def command(self, name: str, *, wait: bool = True) -> None:
        """Execute a command of the front end on this notebook, as its menu does."""
        self.activate()
        self.page.evaluate(
            "([name, wait]) => { const done = window.jupyterapp.commands.execute(name);"
            " if (wait) return Promise.resolve(done).then(() => null); }",
            [name, wait],
        )

    def activate(self) -> None:
        """Bring this notebook to the front."""
        self.do("window.jupyterapp.shell.activateById(panel.id)")

    def run_all(self, *, wait: bool = True) -> None:
        """Run > Run All Cells; waits until the kernel is idle again."""
        self.command("notebook:run-all-cells", wait=False)
        if wait:
            self.wait_idle()

    def restart_and_run_all(self, *, wait: bool = True) -> None:
        """Kernel > Restart Kernel and Run All Cells."""
        self.command("notebook:restart-run-all", wait=False)
        if wait:
            self.wait_idle()

    def run_cell(self, number: int, *, wait: bool = True) -> None:
        """Select one cell and run it (shift-enter)."""
        self.activate()
        self.do("{ panel.content.deselectAll(); panel.content.activeCellIndex = argument; }", number)
        self.command("notebook:run-cell", wait=False)
        if wait:
            self.wait_idle()

    def set_source(self, number: int, source: str) -> None:
        """Write another text into a cell."""
        self.do(
            "panel.content.widgets[argument[0]].model.sharedModel.setSource(argument[1])", [number, source]
        )

    def save(self) -> None:
        """Save the file."""
        self.page.evaluate(f"async (path) => {{ {_PANEL} await panel?.context.save(); }}", self.path)

    def close(self, *, shut_down: bool = True) -> None:
        """Save, close the tab and end the kernel."""
        self.save()
        end = "await panel?.sessionContext.shutdown();" if shut_down else ""
        self.page.evaluate(f"async (path) => {{ {_PANEL} {end} panel?.dispose(); }}", self.path)

    def reload(self) -> None:
        """Reload the browser's page and wait for the notebook."""
        self.save()
        self.page.reload()
        _wait_for_app(self.page)
        _show(self)

    def kill_kernel(self) -> None:
        """SIGKILL the kernel, and accept the front end's message that it died."""
        before = self.server.kernel_process(self.path)
        before.kill()
        before.wait(10)
        dialog = self.page.locator(".jp-Dialog").filter(has_text="appears to have died")
        expect(dialog).to_be_visible(timeout=PATIENCE * 1000)
        dialog.get_by_role("button").last.click()
        until(self._has_another(before.pid), what="a new kernel")
        until(lambda: self.state() == "idle", what="the new kernel to be idle")

    def _has_another(self, pid: int) -> Callable[[], bool]:
        def ask() -> bool:
            try:
                return self.server.kernel_process(self.path).pid != pid
            except (AssertionError, psutil.Error):
                return False

        return ask

    # What is seen.

    def do(self, expression: str, argument: Any = None) -> Any:
        """Evaluate JavaScript in which `panel` is this notebook's and `argument` what is given."""
        return self.page.evaluate(
            f"([path, argument]) => {{ {_PANEL} return {expression}; }}"
            if not expression.startswith("{")
            else f"([path, argument]) => {{ {_PANEL} {expression} }}",
            [self.path, argument],
        )

    def state(self) -> str:
        """Return the kernel's state as the front end has it."""
        return str(self.do("panel.sessionContext.session?.kernel?.status ?? 'none'"))

    def wait_idle(self, *, seconds: float = PATIENCE) -> None:
        """Wait until every cell that was asked for has ended."""
        until(self._rests, seconds=seconds, what=f"{self.path} to be idle")

    def wait_running(self, number: int) -> None:
        """Wait until this cell runs, and nothing before it."""
        until(lambda: self.running()[:1] == [number], what=f"cell {number} of {self.path} to run")

    def _rests(self) -> bool:
        return not self.running() and self.state() == "idle"

    def running(self) -> list[int]:
        """Return the cells that run or wait for their turn, the ones with a star."""
        found: list[int] = self.do(
            "panel.content.widgets.flatMap((cell, number) =>"
            " cell.model.type === 'code' && cell.promptNode?.textContent === '[*]:' ? [number] : [])"
        )
        return found

    def number(self, identity: str) -> int:
        """Return the place of the cell of this id."""
        return int(self.do("panel.content.widgets.findIndex((cell) => cell.model.id === argument)", identity))

    def ran(self, number: int) -> bool:
        """Tell whether a cell was executed since the notebook's outputs were cleared."""
        return self.do("panel.content.widgets[argument].model.executionCount", number) is not None

    def view(self, number: int) -> Locator:
        """Return the live view of nbflow in the output of a cell."""
        return self.output(number).locator(".nbflow").first

    def cell(self, number: int) -> Locator:
        """Return a cell, scrolled into view."""
        self.do("{ panel.content.scrollToCell(panel.content.widgets[argument]); }", number)
        return self.root.locator(f".jp-Cell[data-windowed-list-index='{number}']")

    def output(self, number: int) -> Locator:
        """Return the output area of a cell."""
        return self.cell(number).locator(".jp-Cell-outputArea")

    def text(self, number: int) -> str:
        """Return what a cell shows below its code."""
        return self.output(number).inner_text()

    def outputs(self, number: int) -> list[dict[str, Any]]:
        """Return the outputs of a cell as they would be saved."""
        found: list[dict[str, Any]] = self.do(
            "panel.content.widgets[argument].model.outputs.toJSON()", number
        )
        return found

    @property
    def root(self) -> Locator:
        """The notebook's panel in the page."""
        identity = self.do("panel.id")
        return self.page.locator(f"[id='{identity}']")


def _wait_for_app(page: Page) -> None:
    page.wait_for_function("() => window.jupyterapp", timeout=PATIENCE * 1000)
    page.evaluate("() => window.jupyterapp.restored.then(() => null)")


def _show(opened: NotebookPage, *, kernel: bool = True) -> None:
    # Notebook 7 opens one document a page, by its address.
    if opened.server.frame == "lab":
        opened.page.evaluate(_OPEN, [opened.path, kernel])
    until(lambda: opened.do("panel?.context.isReady && !!panel.revealed"), what=f"{opened.path} in its page")
    if kernel:
        until(lambda: opened.state() in ("idle", "busy"), what=f"the kernel of {opened.path}")


class Desk:
    """A browser and a server: opens pages, and keeps what they said on their console."""

    def __init__(self, browser: Browser, server: JupyterServer) -> None:
        self.browser = browser
        self.server = server
        self.pages: list[Page] = []
        self.console: list[str] = []

    def page(self, *, width: int = 1280, height: int = 900, **options: Any) -> Page:
        """Open another page with nothing of the others' (cookies, storage)."""
        context = self.browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(PATIENCE * 1000)
        page = context.new_page()
        page.on("console", self._heard)
        # "Leave site? Changes may not be saved."
        page.on("dialog", lambda dialog: dialog.accept())
        page.on("pageerror", lambda error: self.console.append(f"pageerror: {error}"))
        self.pages.append(page)
        return page

    def _heard(self, message: ConsoleMessage) -> None:
        # JupyterLab's own builds disagree about each other's versions.
        if message.type in ("error", "warning") and "Unsatisfied version" not in message.text:
            self.console.append(f"{message.type}: {message.text}")

    def application(self, path: str = "", **options: Any) -> Page:
        """Open a page with the front end in it; in Notebook 7 that is always one of a document."""
        page = self.page(**options)
        if path or self.server.frame == "lab":
            self._go(page, path)
        return page

    def _go(self, page: Page, path: str) -> None:
        place = "lab?reset" if self.server.frame == "lab" else f"notebooks/{path}?"
        page.goto(f"{self.server.url}{place}&token={self.server.token}")
        _wait_for_app(page)

    def open(
        self, path: str, *, page: Page | None = None, kernel: bool = True, **options: Any
    ) -> NotebookPage:
        """Open a notebook of the server's folder, in a page that is open or in a new one."""
        if page is None:
            page = self.application(path, **options)
        elif self.server.frame == "notebook":
            self._go(page, path)
        opened = NotebookPage(page, self.server, path, self.console)
        _show(opened, kernel=kernel)
        return opened

    def close(self, page: Page) -> None:
        """Close a page."""
        self.pages.remove(page)
        page.context.close()

    def close_all(self) -> None:
        """Close every page."""
        for page in list(self.pages):
            self.close(page)


def set_theme(page: Page, theme: Literal["light", "dark"]) -> None:
    """Choose JupyterLab's theme, as in Settings > Theme."""
    name = f"JupyterLab {theme.capitalize()}"
    page.evaluate("(theme) => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", name)
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", str(theme == "light").lower())
    # The style sheet comes behind the attribute, and a splash lies over the page meanwhile.
    expect(page.locator("#jupyterlab-splash")).to_have_count(0)


# --- a terminal -----------------------------------------------------------------------------------


def nbflow_cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `nbflow …` in a terminal of a notebook's folder, and return what it said."""
    environment = {**os.environ, "NBFLOW_STORE": str(folder / ".nbflow"), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", "import sys; from nbflow.cli import main; sys.exit(main())", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE * 2, check=False,
    )  # fmt: skip
