"""Kernels that papermill knows and nbflow cannot work in: one of another language, a Python that lacks nbflow."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

_ECHO = '''\
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel


class Echo(Kernel):
    """Says what it is told."""

    implementation, implementation_version, banner = "echo", "1", "echo"
    language_info = {"name": "echo", "mimetype": "text/plain", "file_extension": ".txt"}

    def do_execute(self, code, silent, store_history=True, user_expressions=None, allow_stdin=False, **_):
        if code.startswith("fail"):
            content = {"ename": "EchoError", "evalue": code, "traceback": [code]}
            self.send_response(self.iopub_socket, "error", content)
            return {"status": "error", "execution_count": self.execution_count, **content}
        if not silent:
            self.send_response(self.iopub_socket, "stream", {"name": "stdout", "text": code})
        return {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}


IPKernelApp.launch_instance(kernel_class=Echo)
'''

_BARE = """\
import sys
sys.modules["nbflow"] = None  # `import nbflow` fails, as in an environment that has no nbflow
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the kernels `echo` and `bare` where this test's papermill looks for kernels."""
    for name, language, program in (("echo", "echo", _ECHO), ("bare", "python", _BARE)):
        place = folder / "kernels" / name
        place.mkdir(parents=True)
        (place / "kernel.py").write_text(program)
        argv = [sys.executable, str(place / "kernel.py"), "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": name, "language": language}
        (place / "kernel.json").write_text(json.dumps(spec))
    before = os.environ.get("JUPYTER_PATH")
    monkeypatch.setenv("JUPYTER_PATH", str(folder) if not before else f"{folder}{os.pathsep}{before}")
