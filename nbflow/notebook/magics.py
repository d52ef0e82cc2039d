"""`%%durable`, `%%gate` and `%nbflow`: they read their line, and leave the work to the runner and the commands."""

from __future__ import annotations

from typing import Any

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, needs_local_scope, no_var_expand

from nbflow.core.errors import LeaseLost
from nbflow.notebook.auto import ENTRY
from nbflow.notebook.commands import Commands
from nbflow.notebook.gate_cell import GateRunner
from nbflow.notebook.host import Host
from nbflow.notebook.options import durable_parser, gate_parser, parse_durable, parse_gate
from nbflow.notebook.runner import CellRunner


@magics_class
class DurableMagics(Magics):
    """The magics of nbflow."""

    def __init__(
        self, shell: Any, host: Host, runner: CellRunner, gates: GateRunner, commands: Commands
    ) -> None:
        super().__init__(shell)
        self.kernel_shell = shell
        self.host, self.runner, self.gates, self.commands = host, runner, gates, commands
        self.parser, self.gate_parser = durable_parser(), gate_parser()
        setattr(shell, ENTRY, self.await_cell)

    @no_var_expand
    @needs_local_scope
    @cell_magic
    def durable(self, line: str, cell: str | None = None, **_scope: Any) -> None:
        """Record this cell, and restore it instead of running it as long as nothing it depends on changes."""
        self.runner.run(parse_durable(self.parser, line), cell or "")

    @no_var_expand
    @needs_local_scope
    @cell_magic
    def gate(self, line: str, cell: str | None = None, **_scope: Any) -> None:
        """Stop here until somebody approves what this cell shows."""
        self.gates.ask(parse_gate(self.gate_parser, line), cell or "")

    async def await_cell(self, line: str, cell: str) -> None:
        """Stand in for `%%durable` where the cell has a top-level await (see `auto`)."""
        await self.runner.run_async(parse_durable(self.parser, line), cell)

    @no_var_expand
    @needs_local_scope
    @line_magic
    def nbflow(self, line: str, **_scope: Any) -> Any:
        """Look at the run of this notebook and steer it."""
        try:
            return self.commands.run(line)
        except LeaseLost as error:
            raise self.host.lose(error) from None

    def remove(self) -> None:
        """Take the magics out of the shell."""
        for kind, name in (("cell", "durable"), ("cell", "gate"), ("line", "nbflow")):
            self.kernel_shell.magics_manager.magics[kind].pop(name, None)
        self.kernel_shell.configurables.remove(self)  # where Magics.__init__ put it
        if hasattr(self.kernel_shell, ENTRY):
            delattr(self.kernel_shell, ENTRY)


def manual() -> str:
    """Return the text that `%%durable?` shows."""
    help_text: str = durable_parser().format_help()
    return f"""{help_text}
Examples:

    %%durable flights --retries 3
    flights = load_flights()

    %%durable report --ttl 1d --on-cannot-store rerun
    connection, report = build_report(flights)

A cell that only imports or defines things always runs: that is cheaper than restoring it.
%nbflow status shows what is recorded; %nbflow forget NAME has a cell run again.
"""


def gate_manual() -> str:
    """Return the text that `%%gate?` shows."""
    help_text: str = gate_parser().format_help()
    return f"""{help_text}
Examples:

    %%gate publish Publish to the site? --option web --option mail --timeout 2d
    display(report)
    report.plot()

    %%durable sent
    sent = [send(report, channel) for channel in decision.selections]

The cell stops the notebook until somebody decides: in the dashboard, with
%nbflow approve publish or %nbflow reject publish, or in a terminal with
nbflow approve RUN publish. Then run it again: the decision is bound to
`decision` (approved, by, at, feedback, selections), and the body does not run
again. Without a question the heading of the first Markdown that is displayed is asked.
"""


DurableMagics.durable.__doc__ = manual()
DurableMagics.gate.__doc__ = gate_manual()
DurableMagics.nbflow.__doc__ = Commands.manual()
