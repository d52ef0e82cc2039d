"""An observer that writes down what it is told."""

from __future__ import annotations

from collections.abc import Iterator

from nbflow.core.errors import UsageError
from nbflow.core.events import CALLBACKS, Event


class RecordingObserver:
    """Keeps every event, in the order told. Give it to `nbflow.observe`.

    >>> import nbflow
    >>> seen = RecordingObserver()
    >>> with nbflow.observe(seen), nbflow.run("example"):
    ...     nbflow.durable(version="1", name="load")(lambda: 7)()
    7
    >>> [(event.name, event.state) for event in seen.of("on_step")]
    [('load', 'running'), ('load', 'completed')]
    """

    def __init__(self) -> None:
        #: What was told, oldest first.
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        """Write the event down."""
        self.events.append(event)

    def names(self) -> list[str]:
        """Return the callbacks that were told, in order."""
        return [event.callback for event in self.events]

    def of(self, callback: str) -> list[Event]:
        """Return the events of one callback, such as "on_step".

        Raises:
            UsageError: there is no such callback.
        """
        if callback not in CALLBACKS:
            raise UsageError(f"There is no callback {callback}.", hint=f"There are {', '.join(CALLBACKS)}.")
        return [event for event in self.events if event.callback == callback]

    def states(self) -> list[str]:
        """Return the machine's states in the order in which they were entered."""
        return [event.name for event in self.of("on_state") if event.state == "running"]

    def clear(self) -> None:
        """Forget what was told so far."""
        self.events.clear()

    def __iter__(self) -> Iterator[Event]:
        return iter(tuple(self.events))

    def __len__(self) -> int:
        return len(self.events)
