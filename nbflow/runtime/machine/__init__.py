"""Machines: what a person defines (`machine`, `tasks`), what a task gets (`context`), and how a run goes (`runner`)."""
