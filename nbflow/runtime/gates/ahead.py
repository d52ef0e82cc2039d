"""Gates that are approved before they open: for runs that nobody attends (`nbflow run --approve publish`).

Who starts such a run says so once, for all gates of these names in this process.
A gate that opens asks here before it stops; the decision goes through the inbox
as every other one, so that one that somebody took meanwhile counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from nbflow.core.errors import GateDecided, UsageError
from nbflow.runtime.waits.cancelling import sender

if TYPE_CHECKING:
    from nbflow.core.gates import Form
    from nbflow.runtime.session import Session

log = logging.getLogger("nbflow")


class Approvals(msgspec.Struct, frozen=True):
    """Names of gates that are approved beforehand, each with feedback; by whom, and how they said so."""

    gates: dict[str, str] = {}
    by: str = ""
    via: str = "python"

    @classmethod
    def of(cls, given: Approvals | Iterable[str] | Mapping[str, str], via: str = "python") -> Approvals:
        """Return what was given as names, or as a mapping of names to feedback, as the word of this user.

        Raises:
            UsageError: it is neither.

        >>> Approvals.of(["publish"]).gates, Approvals.of({"publish": "as every night"}).gates
        ({'publish': ''}, {'publish': 'as every night'})
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise UsageError(
                f"approve is {given!r}.",
                hint="Give a list of gates' names, or a mapping of them to feedback.",
            )
        found: dict[Any, Any] = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, "")
        for name, feedback in found.items():
            if not isinstance(name, str) or not name or not isinstance(feedback, str):
                raise UsageError(f"Gates have names and feedback is a text, not {name!r}: {feedback!r}.")
        return cls(found, sender(), via)

    def plain(self) -> dict[str, Any]:
        """Return this as plain data."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made


_approved = Approvals()


def expect(approvals: Approvals) -> None:
    """Have gates of these names approved from now on when they are asked in this process; replaces earlier ones."""
    global _approved  # noqa: PLW0603 - of the process, as its kernel is
    _approved = approvals


def approved(session: Session, step: str, form: Form) -> bool:
    """Approve a gate that is to be; tell whether a decision about it is in the run now.

    One that wants an option selected is left to a person: nothing here says which.
    """
    feedback = _approved.gates.get(form.name)
    if feedback is None:
        return False
    from nbflow.runtime.gates.deciding import decide

    try:
        decide(
            session.store,
            session.run,
            step,
            approved=True,
            feedback=feedback,
            by=_approved.by,
            via=_approved.via,
            opening=form.opening,
        )
    except GateDecided:
        pass  # somebody was first, and that counts
    except UsageError as error:
        log.warning("Gate %r is not approved beforehand: %s", form.name, error)
        return False
    session.recorder.take_messages()
    return True
