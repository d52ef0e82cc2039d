"""A plain page over a real board: the modules served as files, questions over HTTP, pushes as server-sent events.

Stands in for the notebook, whose comm does the same: every push goes to every page.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nbflow.board.board import Board
from nbflow.widgets import assets
from nbflow.widgets.snapshots import Ask, answers, error_data

#: JupyterLab's own colours, light and dark; the views take theirs from them.
THEMES = {
    "light": "--jp-layout-color1:#fff;--jp-layout-color2:#eee;--jp-ui-font-color1:rgba(0,0,0,.87)",
    "dark": "--jp-layout-color1:#111;--jp-layout-color2:#424242;--jp-ui-font-color1:rgba(255,255,255,1)",
}

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>nbflow</title><link rel="icon" href="data:,">
<style>:root{@THEME@} body{margin:0;background:var(--jp-layout-color1)}</style>
<link rel="stylesheet" href="/style.css"><main id="place"></main>
<script type="module">
import {Adapter} from "/static/adapter.js";
import {show} from "/static/entry.js";
let standing = null;
const transport = {
    post(message) {
        fetch("/ask", {method: "POST", body: JSON.stringify(message)})
            .then((answer) => answer.json()).then((answer) => window.receive(answer));
    },
    standing: () => standing,
    start(receive, moved) {
        window.receive = receive;
        window.kill = () => { standing = "gone"; moved("gone"); };
        const source = new EventSource("/pushes");
        source.onmessage = (event) => receive(JSON.parse(event.data));
        return () => source.close();
    },
};
const first = await (await fetch("/first")).json();
window.adapter = new Adapter(transport, first.snapshot);
window.down = await show(document.getElementById("place"), window.adapter, first.kind, first.about);
document.body.dataset.ready = "yes";
</script></html>"""


class BoardServer:
    """What the page talks to; `hold` keeps answers back, as a busy kernel does."""

    def __init__(self, board: Board, kind: str, about: dict[str, Any], asks: dict[str, Ask]) -> None:
        self.board, self.kind, self.about, self.asks = board, kind, about, asks
        self.pages: list[queue.Queue[dict[str, Any]]] = []
        self.free = threading.Event()
        self.free.set()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.theme = "light"
        self.url = ""

    def hold(self) -> None:
        """Answer nothing until `free` is set."""
        self.free.clear()

    def first(self) -> dict[str, Any]:
        """What a page is made from."""
        return {"kind": self.kind, "about": self.about, "snapshot": answers(self.board, self.asks)}

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Answer as a view does."""
        self.free.wait(60)
        method, params = message["method"], message["params"]
        self.asked.append((method, params))
        try:
            if method == "bye":
                method = "unwatch"
            if method == "watch":
                self.board.listen(params["view"], lambda push: self.push({**push, "view": params["view"]}))
            return {"id": message["id"], "result": self.board.ask(method, params)}
        except Exception as error:
            return {"id": message["id"], "error": error_data(error)}

    def push(self, message: dict[str, Any]) -> None:
        """Tell every page."""
        for page in list(self.pages):
            page.put(message)


@contextmanager
def serve(board: Board, kind: str, about: dict[str, Any], asks: dict[str, Ask]) -> Iterator[BoardServer]:
    """Serve the page on loopback."""
    served = BoardServer(board, kind, about, asks)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def reply(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            name = self.path.partition("?")[0]
            if name == "/":
                theme = "dark" if "dark" in self.path else "light"
                self.reply(_PAGE.replace("@THEME@", THEMES[theme]).encode(), "text/html")
            elif name == "/first":
                self.reply(json.dumps(served.first()).encode(), "application/json")
            elif name == "/style.css":
                self.reply(assets.style().encode(), "text/css")
            elif name == "/pushes":
                self.stream()
            elif name.startswith("/static/") and name.rpartition("/")[2] in assets.modules():
                self.reply(assets.modules()[name.rpartition("/")[2]].encode(), "text/javascript")
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(json.dumps(served.answer(message)).encode(), "application/json")

        def stream(self) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            mine: queue.Queue[dict[str, Any]] = queue.Queue()
            served.pages.append(mine)
            try:
                while True:
                    try:
                        self.wfile.write(f"data: {json.dumps(mine.get(timeout=5))}\n\n".encode())
                    except queue.Empty:
                        self.wfile.write(b": still here\n\n")
                    self.wfile.flush()
            except OSError:
                served.pages.remove(mine)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        served.free.set()
        server.shutdown()
        server.server_close()
