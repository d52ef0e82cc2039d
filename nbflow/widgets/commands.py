"""The views that `%nbflow` shows."""

from nbflow.notebook.shown import show_with
from nbflow.widgets.dashboard import dashboard
from nbflow.widgets.gate import show_gate

show_with("dashboard", dashboard)
show_with("gate", show_gate)
