"""`python -m nbflow.cli`: the command `nbflow` of exactly this Python, whatever is on the path."""

from nbflow.cli import main

main()
