"""Commands that run one notebook without a person: `run`, and `resume` for what died."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from nbflow.cli.arguments import parameters_of
from nbflow.cli.desk import EXIT_CODES, INTERRUPTED, AsJson, Debug, Desk, Place, desk, exit_code
from nbflow.cli.notebook_report import beginning, ending, facts, say_failure, say_waiting, short
from nbflow.cli.runs import RunId
from nbflow.core.errors import GatePending, KernelDied, NbflowError, UsageError

if TYPE_CHECKING:
    from nbflow.headless.execute import Executed, Prepared
    from nbflow.headless.execution.bookkeeping import Bookkeeper
    from nbflow.runtime.gates.ahead import Approvals

#: Exit codes of a notebook that failed, and of one that waits at a gate.
FAILED, WAITS = 1, EXIT_CODES[GatePending]

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
Approve = Annotated[
    list[str] | None,
    typer.Option(
        "--approve",
        metavar="GATE[=FEEDBACK]",
        help="Approve the gates of this name as soon as they are asked; repeatable.",
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
    approve: Approve = None,
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
    as it grows; the notebook itself is never changed. One that stops at a gate ends with
    exit code 10, and when somebody has decided, the same command goes on from there.
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
                approve=approvals_of(approve),
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
    approve: Approve = None,
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

            carry_on(at, info.run, place, approvals_of(approve))
            return
        with readable():
            launched = opened.launch.get("output", "")
            target = output or (
                None if launched not in {"", "-"} else default_output(opened.launch.get("input", ""))
            )
            if target is not None:
                may_write(opened.launch.get("input", ""), target, overwrite=False)
            prepared = prepare_again(
                opened,
                place,
                output=target,
                approve=approvals_of(approve),
                progress=_bar(at, progress_bar, log_output),
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


def approvals_of(given: Sequence[str] | None) -> Approvals:
    """Return what `--approve publish --approve "budget=as every night"` approves, as the word of this user.

    Raises:
        UsageError: a name is missing, or given twice.

    >>> approvals_of(["publish", "budget=as every night"]).gates
    {'publish': '', 'budget': 'as every night'}
    """
    from nbflow.runtime.gates.ahead import Approvals

    found: dict[str, str] = {}
    for word in given or ():
        name, _, feedback = word.partition("=")
        if name in found:
            raise UsageError(f"--approve names the gate {name!r} twice.")
        found[name] = feedback
    return Approvals.of(found, via="cli")


def _bar(at: Desk, wanted: bool | None, log_output: bool) -> bool:
    if wanted is not None:
        return wanted
    return not at.as_json and not log_output and sys.stderr.isatty()


# --- the run -------------------------------------------------------------------------------------------------


def perform(at: Desk, prepared: Prepared, *, log_output: bool, debug: bool) -> None:
    """Run a prepared notebook, say how it went, and leave with its exit code."""
    begun = time.monotonic()
    at.say(beginning(prepared))
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
    if done is not None and done.waiting is not None:
        say_waiting(at, prepared, done.waiting, counts, seconds)
    elif error is None and done is not None:
        at.say(ending(prepared, "completed", counts, seconds))
        for name, value in done.result.items():
            at.say(Text.assemble(("  " + name, "dim"), f" = {short(value)}"))
    elif error is not None:
        say_failure(at, prepared, error, counts, seconds)
    if at.as_json:
        counted = {**counts, "seconds": seconds}
        at.answer(facts(prepared, done, error) | counted | {"warnings": warned})
    if error is not None:
        raise typer.Exit(_code(error))
    if done is not None and done.waiting is not None:
        raise typer.Exit(WAITS)


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
