"""The engine `nbflow` of papermill: `papermill --engine nbflow in.ipynb out.ipynb` carries on where it died.

papermill does everything it always does: it reads the notebook from wherever
it is, injects parameters, writes the output as it grows, reports errors. The
engine differs in what runs a cell: a kernel in which every code cell is a
durable step of a run (`nbflow.notebook.unattended`), found again by notebook,
parameters and kernel.

papermill imports this module whenever it is imported itself: it must stay light.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from papermill.engines import NBClientEngine

#: Names the run to carry on, or "new" for a fresh one.
RUN_VARIABLE = "NBFLOW_RUN"


class NbflowEngine(NBClientEngine):  # type: ignore[misc]  # papermill ships no types
    """Run a notebook as a durable run: cells that are recorded are restored, the others run and are recorded.

    Options beside papermill's own (keywords of `papermill.execute_notebook`):

    * `nbflow_run`: the run to carry on, or "new"; by default the newest unfinished
      one of this notebook, with these parameters, in this kernel.
    * `nbflow_store`: the store's place; by default $NBFLOW_STORE, else the nearest
      `.nbflow` folder above the notebook.
    * `nbflow_collect`: names of variables that are recorded as the run's result.
    * `nbflow_approve`: names of gates that are approved when they are asked, or a
      mapping of them to feedback.

    A notebook that stops at a gate raises `nbflow.errors.GatePending`, with which
    papermill's command line ends with exit code 10.
    """

    @classmethod
    def execute_notebook(
        cls,
        nb: Any,
        kernel_name: str,
        output_path: str | None = None,
        progress_bar: Any = True,
        log_output: bool = False,
        autosave_cell_every: int = 30,
        **kwargs: Any,
    ) -> Any:
        """Run the notebook with a bookkeeper that tells the truth; see `papermill.engines.Engine`."""
        from nbflow.headless.execution.bookkeeping import Bookkeeper

        books = Bookkeeper(
            nb,
            output_path=output_path,
            progress_bar=progress_bar,
            log_output=log_output,
            autosave_cell_every=autosave_cell_every,
        )
        books.notebook_start()
        try:
            try:
                cls.execute_managed_notebook(books, kernel_name, log_output=log_output, **kwargs)
            finally:
                books.cleanup_pbar()
                books.notebook_complete()
            books.conclude()
        finally:
            books.put_away()
        return books.nb

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        log_output: bool = False,
        stdout_file: Any = None,
        stderr_file: Any = None,
        start_timeout: int = 60,
        execution_timeout: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the notebook; see `papermill.engines.Engine`."""
        from nbflow.headless.execution.conduct import conduct

        return conduct(
            nb_man,
            kernel_name,
            log_output=log_output,
            stdout_file=stdout_file,
            stderr_file=stderr_file,
            start_timeout=start_timeout,
            execution_timeout=execution_timeout,
            **kwargs,
        )


#: The option of the command line that stands for `RUN_VARIABLE`.
RUN_OPTION = "--nbflow-run"


def _take_option(arguments: list[str]) -> None:
    """Take `--nbflow-run RUN` out of papermill's command line, which has no options of its engines'.

    papermill loads its engines before it reads its arguments.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    ours = [argument for argument in arguments[:end] if argument.partition("=")[0] == RUN_OPTION]
    for argument in ours:
        place = arguments.index(argument)
        del arguments[place]
        _, equals, run = argument.partition("=")
        if not equals and place < len(arguments) and not arguments[place].startswith("-"):
            run = arguments.pop(place)
        if not run:
            _refuse(f"Option '{RUN_OPTION}' needs the id of a run, or `new`.")
        os.environ[RUN_VARIABLE] = run
    if ours and not {"nbflow", "--engine=nbflow"} & set(arguments):
        _refuse(f"Option '{RUN_OPTION}' is one of the engine nbflow: add `--engine nbflow`.")


def _refuse(why: str) -> None:
    sys.stderr.write(f"Error: {why}\n")
    sys.exit(2)  # as papermill's own parser does


def _is_command_line() -> bool:
    """Tell whether this process is `papermill …` or `python -m papermill …`."""
    if sys.argv[0] == "-m":  # still being found: its file is known when the package is imported
        words = sys.orig_argv
        return "-m" in words and words[words.index("-m") + 1 :][:1] == ["papermill"]
    return os.path.basename(sys.argv[0]) in {"papermill", "papermill.exe"}  # noqa: PTH119 - pathlib is not light


if sys.argv and _is_command_line():
    _take_option(sys.argv)
