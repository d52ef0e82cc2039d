"""`%load_ext nbflow` and `%unload_ext nbflow`: put all into the shell, and take all of it out again."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import partial
from typing import Any

from traitlets import TraitError

from nbflow.core.gates import Gate
from nbflow.notebook import gate_cell, messages, shown, taps
from nbflow.notebook.auto import CellRewriter
from nbflow.notebook.commands import SUBCOMMANDS, Commands
from nbflow.notebook.completion import LineMatcher
from nbflow.notebook.config import NbFlow
from nbflow.notebook.hold import Hold
from nbflow.notebook.host import Host
from nbflow.notebook.magics import DurableMagics
from nbflow.notebook.options import durable_options, gate_options
from nbflow.notebook.runner import CellRunner
from nbflow.notebook.warned import WARNED
from nbflow.runtime import active

_PLACE = "_nbflow_extension"


class Extension:
    """What was put into one shell."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.config = _settings(shell)
        self.host = Host(shell, self.config)
        self.rewriter = CellRewriter(shell, lambda: self.config.auto)
        self.runner = CellRunner(self.host, self.rewriter)
        self.gates = gate_cell.GateRunner(self.host, self.rewriter)
        self.hold = Hold(shell, partial(gate_cell.still_waits, self.host))
        self.commands = Commands(self.host)
        wants = {word: subcommand.wants for word, subcommand in SUBCOMMANDS.items()}
        self.matcher = LineMatcher(
            shell,
            durable_options(),
            wants,
            self.commands.step_names,
            self.commands.run_ids,
            gate_options=gate_options(),
            gates=self.commands.gate_names,
        )
        self._undo: list[Callable[[], None]] = []

    def load(self) -> None:
        """Install magics, transform, events, matcher, settings and the opener of durable calls."""
        shell, host = self.shell, self.host
        magics = DurableMagics(shell, host, self.runner, self.gates, self.commands)
        shell.register_magics(magics)
        self._undo.append(magics.remove)
        shell.configurables.append(self.config)
        self._undo.append(lambda: shell.configurables.remove(self.config))
        self.rewriter.install()
        self._undo.append(self.rewriter.remove)
        self.hold.install()
        self._undo.append(self.hold.remove)
        for name, callback in (("pre_run_cell", host.pre_run_cell), ("post_run_cell", host.post_run_cell)):
            shell.events.register(name, callback)
            self._undo.append(partial(shell.events.unregister, name, callback))
        self.matcher.install()
        self._undo.append(self.matcher.remove)
        active.set_opener(host.attach)
        self._undo.append(lambda: active.set_opener(None))
        WARNED.install()
        self._undo.append(WARNED.remove)
        messages.install_error_rendering()
        self._undo.append(messages.remove_error_rendering)
        gate_cell.install_rendering(host)
        gate_cell.show_with(partial(_show_live, host))
        self._undo.append(gate_cell.remove_rendering)
        self._undo.append(partial(gate_cell.show_with, None))
        atexit.register(host.detach)
        self._undo.append(lambda: atexit.unregister(host.detach))

    def unload(self) -> None:
        """Undo `load`, give the lease up and close the store."""
        while self._undo:
            self._undo.pop()()
        taps.forget(self.shell)
        self.host.close()


def _show_live(
    host: Host, shell: Any, asked: gate_cell.Asked, gate: Gate, occasion: gate_cell.Occasion
) -> bool:
    """Show a gate with buttons, where there is a kernel and a person in front of it."""
    if host.engaged or getattr(shell, "kernel", None) is None:
        return False
    return bool(shown.show("gate", shell=shell, asked=asked, gate=gate, occasion=occasion))


def _settings(shell: Any) -> NbFlow:
    """Return the settings of this shell; one that makes no sense is left out with a word about it.

    `%config NbFlow.auto = 3` is refused, but IPython keeps it among the shell's own settings.
    """
    section = shell.config.get("NbFlow", {})
    for name, value in list(section.items()):
        try:
            setattr(NbFlow(), name, value)
        except TraitError as error:
            del section[name]
            messages.say(shell, f"NbFlow.{name} = {value!r} is left out: {error}")
    return NbFlow(parent=shell)


def load_ipython_extension(shell: Any) -> None:
    """Load nbflow into an IPython shell; loading twice is fine."""
    if getattr(shell, _PLACE, None) is None:
        extension = Extension(shell)
        extension.load()
        setattr(shell, _PLACE, extension)


def extension_of(shell: Any) -> Extension:
    """Return what is loaded into a shell."""
    extension: Extension = getattr(shell, _PLACE)
    return extension


def loaded_in(shell: Any) -> Extension | None:
    """Return what is loaded into a shell, or None."""
    return getattr(shell, _PLACE, None)


def unload_ipython_extension(shell: Any) -> None:
    """Take nbflow out of an IPython shell; what is recorded stays."""
    extension = getattr(shell, _PLACE, None)
    if extension is not None:
        delattr(shell, _PLACE)
        extension.unload()
