"""Many executions of one notebook: the plan, the runner, and what came of it."""
