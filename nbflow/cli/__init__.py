"""The command `nbflow`. This file is only the door: nothing heavy is imported before a command is chosen.

Exit codes, the same for every command (`docs/cli.md` explains them):

    0    done
    1    an error that has no code of its own; a notebook failed
    2    the command line, a duration, a query … makes no sense
    3    no such run, step, output or store
    4    another process holds the database
    5    a living process owns the run
    6    damaged: a record, a leaf or the store's files
    7    not signed by a key that you trust
    8    the store cannot be used: not a store, read-only, full, or of a later version
    9    some notebooks of a batch failed
    10   the run waits at a gate for somebody to decide
    11   the gate is decided already, or its time is over
    130  interrupted
    138  the kernel of a notebook died
"""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit the process with its code."""
    from nbflow.cli.app import app

    app()
