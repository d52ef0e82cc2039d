"""Complete `%%durable`, `%%gate` and `%nbflow` lines: options, subcommands, step names and run ids.

IPython's completer knows a magic's options only for line magics with a parser;
this matcher stands beside Jedi and, on these lines, before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

_LINE = re.compile(r"^\s*(%%durable|%%gate|%nbflow)\s+(.*)$", re.DOTALL)


class LineMatcher:
    """A custom matcher for IPython's completer; `install` puts it there."""

    def __init__(
        self,
        shell: Any,
        durable_options: Iterable[str],
        subcommands: dict[str, tuple[str, ...]],
        steps: Callable[[], list[str]],
        runs: Callable[[], list[str]],
        *,
        gate_options: Iterable[str] = (),
        gates: Callable[[], list[str]] = list,
    ) -> None:
        self._shell = shell
        self._durable_options = sorted(durable_options)
        self._subcommands = subcommands
        self._gate_options = sorted(gate_options)
        self._steps, self._runs, self._gates = steps, runs, gates
        self._matcher: Any = None

    def install(self) -> None:
        """Register with the completer; registering twice is fine."""
        completer = getattr(self._shell, "Completer", None)
        if completer is None or self._matcher is not None:
            return
        from IPython.core.completer import SimpleCompletion, context_matcher

        @context_matcher(identifier="nbflow")  # type: ignore[untyped-decorator]
        def match_nbflow(context: Any) -> Any:
            words = self.candidates(context.full_text, context.cursor_position, context.cursor_line)
            typed = context.text_until_cursor.split(" ")[-1]
            return {
                "matched_fragment": typed,
                "completions": [SimpleCompletion(text=word, type="nbflow") for word in words],
                "suppress": bool(words),
            }

        self._matcher = match_nbflow
        completer.custom_matchers.append(match_nbflow)

    def remove(self) -> None:
        """Take the matcher out again."""
        completer = getattr(self._shell, "Completer", None)
        if completer is not None and self._matcher in completer.custom_matchers:
            completer.custom_matchers.remove(self._matcher)
        self._matcher = None

    def candidates(self, text: str, position: int, line_number: int) -> list[str]:
        """Return what may stand at the cursor; [] where this is not our line.

        `position` counts from the beginning of the line with the cursor.
        """
        lines = text.split("\n")
        line = lines[line_number] if line_number < len(lines) else ""
        found = _LINE.match(line[:position])
        if not found or (found[1].startswith("%%") and line_number != 0):
            return []
        words = found[2].split(" ")
        typed, before = words[-1], [word for word in words[:-1] if word]
        tell = {"%%durable": self._durable, "%%gate": self._gate, "%nbflow": self._nbflow}[found[1]]
        choices = tell(typed, before)
        return [choice for choice in choices if choice.startswith(typed) and choice != typed]

    def _durable(self, typed: str, before: list[str]) -> list[str]:
        if before and before[-1] == "--on-cannot-store":
            return ["error", "rerun"]
        if typed.startswith("-"):
            return [option for option in self._durable_options if option not in before]
        return [] if any(not word.startswith("-") for word in before) else self._steps()

    def _gate(self, typed: str, before: list[str]) -> list[str]:
        values = {"--on-timeout": ["fail", "continue", "reject"], "--on-reject": ["raise", "return"]}
        if before and before[-1] in values:
            return values[before[-1]]
        once = [option for option in before if option != "--option"]
        if typed.startswith("-"):
            return [option for option in self._gate_options if option not in once]
        return []

    def _nbflow(self, typed: str, before: list[str]) -> list[str]:
        if not before:
            return sorted(self._subcommands)
        wants = self._subcommands.get(before[0], ())
        options = [want for want in wants if want.startswith("-") and want not in before]
        if typed.startswith("-"):
            return options
        found: list[str] = []
        for want in wants:
            if want == "STEP":
                found += self._steps()
            elif want == "RUN":
                found += self._runs()
            elif want == "GATE":
                found += self._gates()
            elif not want.startswith("-"):
                found.append(want)
        return [word for word in found if word not in before]
