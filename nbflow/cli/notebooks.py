"""Commands that run one notebook without a person: `run`, and `resume` for what died."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from nbflow.cli import show
from nbflow.cli.arguments import parameters_of
from nbflow.cli.desk import INTERRUPTED, AsJson, Debug, Desk, Place, desk, exit_code
from nbflow.cli.runs import RunId
from nbflow.core.errors import KernelDied, NbflowError, UsageError
from nbflow.notebook.amounts import duration

if TYPE_CHECKING:
    from nbflow.headless.execute import Executed, Prepared
    from nbflow.headless.execution.bookkeeping import Bookkeeper

#: Exit code of a notebook that failed.
FAILED = 1

#: Lines of a traceback that are shown; the output notebook has all of them.
_TRACEBACK = 30

NotebookPlace = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PLACE",
        help="The store's folder. Default: $NBFLOW_STORE, else the nearest .nbflow above the notebook.",
    ),
]
KernelName = Annotated[
    str | None,
    typer.Option("--kernel", "-k", metavar="NAME", help="The kernel. Default: the notebook's own."),
]
ExecutionTimeout = Annotated[
    int | None,
    typer.Option("--execution-timeout", metavar="SECONDS", min=1, help="For each cell. Default: none."),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an output file that is not of this notebook."),
]
ProgressBar = Annotated[
    bool | None,
    typer.Option(
        "--progress-bar/--no-progress-bar", help="Show a progress bar. Default: where a person looks on."
    ),
]
LogOutput = Annotated[
    bool, typer.Option("--log-output/--no-log-output", help="Show what the cells print while they run.")
]


def run(
    notebook: Annotated[str, typer.Argument(metavar="NOTEBOOK", help="A path, or whatever papermill reads.")],
    output: Annotated[
        str | None,
        typer.Argument(
            metavar="[OUTPUT]", help="The executed notebook. Default: NOTEBOOK-out.ipynb beside the notebook."
        ),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--parameters",
            "-p",
            metavar="NAME VALUE",
            help="A parameter; numbers, True, False and None are such.",
        ),
    ] = None,
    parameters_raw: Annotated[
        list[str] | None,
        typer.Option(
            "--parameters_raw",
            "-r",
            metavar="NAME VALUE",
            help="A parameter that stays text, whatever it looks like.",
        ),
    ] = None,
    parameters_yaml: Annotated[
        list[str] | None, typer.Option("--parameters_yaml", "-y", metavar="YAML", help="Parameters as YAML.")
    ] = None,
    parameters_file: Annotated[
        list[str] | None,
        typer.Option("--parameters_file", "-f", metavar="FILE", help="Parameters in a YAML or JSON file."),
    ] = None,
    parameters_base64: Annotated[
        list[str] | None,
        typer.Option("--parameters_base64", "-b", metavar="TEXT", help="Parameters as YAML in Base64."),
    ] = None,
    kernel: KernelName = None,
    cwd: Annotated[
        Path | None,
        typer.Option(
            "--cwd", metavar="FOLDER", help="The folder that the notebook runs in. Default: this one."
        ),
    ] = None,
    collect: Annotated[
        str | None,
        typer.Option("--collect", metavar="NAMES", help="Variables that are the run's result: metric,auc."),
    ] = None,
    which: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="The run to carry on, or `new`. Default: the newest unfinished one of this notebook "
            "with these parameters.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    progress_bar: ProgressBar = None,
    log_output: LogOutput = False,
    start_timeout: Annotated[
        int, typer.Option("--start-timeout", metavar="SECONDS", min=1, help="For the kernel to start.")
    ] = 60,
    execution_timeout: ExecutionTimeout = None,
    store: NotebookPlace = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run a notebook with every cell a durable step; the same command carries on what died.

    Parameters, paths and timeouts are papermill's. The executed notebook is written
    as it grows; the notebook itself is never changed.
    """
    with desk(store, as_json, debug) as at:
        given = parameters_of(
            encoded=parameters_base64 or (),
            files=parameters_file or (),
            yaml=parameters_yaml or (),
            pairs=parameters or (),
            raw=parameters_raw or (),
        )
        with readable():
            from papermill.parameterize import add_builtin_parameters, parameterize_path

            from nbflow.headless.execute import prepare
            from nbflow.headless.identity import verbatim

            source = parameterize_path(notebook, add_builtin_parameters(given))
            target = parameterize_path(output or default_output(source), add_builtin_parameters(given))
            may_write(source, target, overwrite=overwrite)
            prepared = prepare(
                verbatim(source),
                verbatim(target),
                given,
                kernel=kernel,
                run=which,
                cwd=cwd,
                collect=names_of(collect),
                store=store,
                progress=_bar(at, progress_bar, log_output),
                log_output=log_output,
                start_timeout=start_timeout,
                execution_timeout=execution_timeout,
            )
        perform(at, prepared, log_output=log_output, debug=debug)


def resume(
    run: RunId,
    output: Annotated[
        str | None,
        typer.Argument(metavar="[OUTPUT]", help="The executed notebook. Default: where it went before."),
    ] = None,
    progress_bar: ProgressBar = None,
    log_output: LogOutput = False,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Start an unfinished run of papermill, `nbflow run` or `nbflow batch` again, from its last recorded cell.

    Notebook, parameters, kernel, folder and output are those that it was started with.
    """
    with desk(store, as_json, debug) as at:
        from nbflow.headless.batches.jobs import BATCH
        from nbflow.headless.relaunch import opening_of, prepare_again
        from nbflow.store.place import locate

        info = at.store.run(run)
        opened = opening_of(at.store, info)
        at.close()
        place = locate(store)
        if opened.variant == BATCH:
            from nbflow.cli.batch import carry_on

            carry_on(at, info.run, place)
            return
        with readable():
            launched = opened.launch.get("output", "")
            target = output or (
                None if launched not in {"", "-"} else default_output(opened.launch.get("input", ""))
            )
            if target is not None:
                may_write(opened.launch.get("input", ""), target, overwrite=False)
            prepared = prepare_again(
                opened, place, output=target, progress=_bar(at, progress_bar, log_output)
            )
        perform(at, prepared, log_output=log_output, debug=debug)


# --- before --------------------------------------------------------------------------------------------------


def default_output(notebook: str) -> str:
    """Return where the executed notebook goes if nobody says: beside the notebook, or here if it is remote.

    >>> default_output("reports/flights.ipynb"), default_output("s3://bucket/flights.ipynb")
    ('reports/flights-out.ipynb', 'flights-out.ipynb')
    """
    if "://" in notebook:
        notebook = notebook.rpartition("/")[2]
    return f"{notebook.removesuffix('.ipynb')}-out.ipynb"


def may_write(notebook: str, output: str, *, overwrite: bool) -> None:
    """Make the output's folder, and refuse to replace what is not an earlier output of this notebook.

    Raises:
        UsageError: the output is the notebook itself, or something else that nobody allowed to replace.
    """
    if output == "-":
        raise UsageError(
            "`nbflow run` writes its report to standard output, not the notebook.",
            hint="Name a file, or use `papermill --engine nbflow`.",
        )
    if "://" in output:
        return
    file = Path(output)
    if file.is_dir():
        raise UsageError(f"The output {output} is a folder.", hint="Name a file in it.")
    if file.exists() and Path(notebook).exists() and file.samefile(notebook):
        raise UsageError(
            f"The output {output} is the notebook itself, which stays as it is.", hint="Name another file."
        )
    if file.exists() and not overwrite and not _executed_from(file, notebook):
        raise UsageError(
            f"{output} exists and is not an earlier output of {notebook}.",
            hint="Name another file, or add --overwrite.",
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The folder of the output {output} cannot be made: {error.strerror}.") from error


def _executed_from(output: Path, notebook: str) -> bool:
    """Tell whether a file is what papermill wrote when it ran this notebook; the notebook may have moved."""
    try:
        facts = json.loads(output.read_text(encoding="utf-8"))["metadata"]["papermill"]
        source = str(facts["input_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return "://" in source or Path(source).name == Path(notebook).name


@contextmanager
def readable() -> Iterator[None]:
    """Say in a sentence what papermill cannot read or start.

    Raises:
        UsageError.
    """
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    from nbformat.reader import NotJSONError
    from nbformat.validator import NotebookValidationError
    from papermill.exceptions import PapermillMissingParameterException

    try:
        with warnings.catch_warnings():
            # papermill's guess that a file of another name is no notebook; ours says whether it is one.
            warnings.filterwarnings("ignore", category=UserWarning, module="papermill")
            yield
    except NoSuchKernel as error:
        there = ", ".join(sorted(KernelSpecManager().find_kernel_specs()))
        raise UsageError(
            f"There is no kernel {error.name!r}.", hint=f"There are: {there}. Choose one with --kernel."
        ) from error
    except FileNotFoundError as error:
        raise UsageError(f"There is no notebook {error.filename or error}.") from error
    except IsADirectoryError as error:
        raise UsageError(f"{error.filename} is a folder, not a notebook.") from error
    except (NotJSONError, NotebookValidationError, UnicodeDecodeError) as error:
        raise UsageError("This is no notebook.", hint=str(error).partition("\n")[0][:200]) from error
    except PapermillMissingParameterException as error:
        raise UsageError(f"A path names a parameter that is not given: {error}") from error
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(str(error)) from error


def names_of(text: str | None) -> list[str]:
    """Return what `--collect a,b` names.

    >>> names_of("metric, auc"), names_of(None)
    (['metric', 'auc'], [])
    """
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _bar(at: Desk, wanted: bool | None, log_output: bool) -> bool:
    if wanted is not None:
        return wanted
    return not at.as_json and not log_output and sys.stderr.isatty()


# --- the run -------------------------------------------------------------------------------------------------


def perform(at: Desk, prepared: Prepared, *, log_output: bool, debug: bool) -> None:
    """Run a prepared notebook, say how it went, and leave with its exit code."""
    begun = time.monotonic()
    at.say(_beginning(prepared))
    error: BaseException | None = None
    done: Executed | None = None
    books: list[Bookkeeper] = []
    # Jupyter's debugger warns of Python's frozen modules in every kernel's log.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    with logged(at, log_output) as warned:
        try:
            done = prepared.start(books.append)
        except (KernelDied, KeyboardInterrupt) as stopped:
            error = stopped
        except NbflowError:
            raise  # it says itself what to do
        except Exception as stopped:
            if debug:
                raise
            error = stopped
    counts = books[-1].counts if books else {"restored": 0, "ran": 0}
    seconds = time.monotonic() - begun
    if error is None and done is not None:
        at.say(_ending(prepared, "completed", counts, seconds))
        for name, value in done.result.items():
            at.say(Text.assemble(("  " + name, "dim"), f" = {_short(value)}"))
    elif error is not None:
        _say_failure(at, prepared, error, counts, seconds)
    if at.as_json:
        counted = {**counts, "seconds": seconds}
        at.answer(_facts(prepared, done, error) | counted | {"warnings": warned})
    if error is not None:
        raise typer.Exit(_code(error))


def _code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return exit_code(error) if isinstance(error, KernelDied) else FAILED


@contextmanager
def logged(at: Desk, everything: bool) -> Iterator[list[str]]:
    """Print what papermill and the engine log to standard error, and keep the warnings."""
    said: list[str] = []

    class Printed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno > logging.WARNING:
                return  # an exception comes behind it, and says more
            warned = record.levelno == logging.WARNING
            if warned:
                said.append(record.getMessage())
            if not at.as_json:
                typer.echo(f"{'Warning: ' if warned else ''}{record.getMessage()}", err=True)

    logger = logging.getLogger("papermill")
    handler, before, propagate = Printed(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if everything else logging.WARNING)
    logger.propagate = False  # nobody prints it twice
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagate


def _beginning(prepared: Prepared) -> Text:
    """Say which run it is, and where it goes on."""
    run = (prepared.run, "bold")
    plan = prepared.plan
    if prepared.owner:
        waits = f" of {prepared.workflow} is at work in {prepared.owner}; waiting a moment for it to end."
        return Text.assemble("Run ", run, waits)
    if plan is None:
        return Text.assemble("Run ", run, f" of {prepared.workflow} begins.")
    recorded = f"{plan.restored} cell{'' if plan.restored == 1 else 's'} recorded"
    kept = f" ({duration(plan.saved)} of work)" if plan.saved >= 1 else ""
    first = next((step for step in plan.steps if step.action == "run" and step.index is not None), None)
    where = "nothing is left to run"
    if first is not None and first.index is not None:
        where = f"goes on at cell {first.index + 1} of {prepared.cells}: {first.reason}"
    return Text.assemble(
        "Run ", run, f" of {prepared.workflow}, attempt {prepared.attempts + 1}: {recorded}{kept}, {where}."
    )


def _ending(prepared: Prepared, state: str, counts: dict[str, int], seconds: float) -> Text:
    """Say how it ended, what was restored and ran, and where the notebook is."""
    restored = counts["restored"]
    cells = f"{restored} cell{'' if restored == 1 else 's'} restored, {counts['ran']} ran"
    where = f" → {prepared.target}" if prepared.target else ""
    return Text.assemble(show.state(state), f": {cells}, {duration(seconds)}{where}")


def _say_failure(
    at: Desk, prepared: Prepared, error: BaseException, counts: dict[str, int], seconds: float
) -> None:
    """Say what stopped the notebook, and how to carry it on."""
    state = "failed" if _failed(error) else "stopped"
    if isinstance(error, KeyboardInterrupt):
        state = "interrupted"
    at.say(_ending(prepared, state, counts, seconds))
    if _failed(error):
        at.say(Text(f"Cell {error.cell_index + 1} of {prepared.cells}:", style="bold"))  # type: ignore[attr-defined]
        at.say(Text.from_ansi(_shortened("\n".join(error.traceback))))  # type: ignore[attr-defined]
    elif not isinstance(error, KeyboardInterrupt):
        at.say(Text(_message(error), style="red"))
    at.say(Text.assemble(("Carry on: ", "bold"), how_to_resume(prepared.run, prepared.store)))


def _failed(error: BaseException) -> bool:
    """Tell whether a cell failed, and not what is around it: the kernel, the patience of a person, the disk."""
    from papermill import PapermillExecutionError

    return isinstance(error, PapermillExecutionError)


def _message(error: BaseException) -> str:
    if isinstance(error, KernelDied):
        return error.message
    return f"{type(error).__name__}: {str(error).strip()}".rstrip(": ")


def how_to_resume(run: str, store: Path) -> str:
    """Return the command that carries a run on, from this folder."""
    from nbflow.store.place import locate

    place = "" if locate(None) == store else f" --store {shlex.quote(str(store))}"
    return f"nbflow resume {run}{place}"


def _shortened(traceback: str) -> str:
    lines = traceback.rstrip().splitlines()
    if len(lines) <= _TRACEBACK:
        return "\n".join(lines)
    return "\n".join(["…", *lines[-_TRACEBACK:]])


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def _facts(prepared: Prepared, done: Executed | None, error: BaseException | None) -> dict[str, Any]:
    """Return the execution as JSON-able facts, as documented in docs/cli.md."""
    told: dict[str, Any] | None = None
    if error is not None and _failed(error):
        told = {"type": error.ename, "message": error.evalue, "cell": error.cell_index}  # type: ignore[attr-defined]
    elif isinstance(error, KernelDied):
        told = {"type": "KernelDied", "message": error.message, "cell": error.cell}
    elif error is not None:
        told = {"type": type(error).__name__, "message": str(error).strip(), "cell": None}
    return {
        "run": prepared.run,
        "workflow": prepared.workflow,
        "state": done.state if done is not None else "failed" if error and _failed(error) else "stopped",
        "attempt": prepared.attempts + 1,
        "output": prepared.target,
        "result": {} if done is None else done.result,
        "error": told,
    }
