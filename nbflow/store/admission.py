"""Which messages a store asks about before it takes them: decisions about gates, so that the first one wins."""

from __future__ import annotations

from collections.abc import Callable

from nbflow.core.history import History
from nbflow.core.model import Entry, Message
from nbflow.core.states import DECISION


def refusal(message: Message) -> Callable[[list[Entry], list[Message]], None] | None:
    """Return the check, given entries and waiting messages, that raises to refuse; None where all are welcome."""
    if message.topic != DECISION:
        return None

    def check(entries: list[Entry], waiting: list[Message]) -> None:
        from nbflow.core.gates import admit

        admit(History.of(entries), waiting, message)

    return check
