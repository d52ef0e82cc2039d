"""Who is told what happened in a run: observers, logs, traces."""
