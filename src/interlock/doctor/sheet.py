"""The lines as a terminal shows them."""

from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from interlock.doctor.finding import Diagnosis, State

_MARKS = {
    State.OK: ("✓", "green"),
    State.MISSING: ("–", "dim"),
    State.TRAP: ("!", "yellow"),
    State.WRONG: ("✗", "red"),
}
_INDENT = 22


def sheet(lines: Sequence[Diagnosis]) -> Text:
    """A line for each, its remedy below it, and how many there are of each state."""
    text = Text()
    topic = ""
    for line in lines:
        mark, style = _MARKS[line.state]
        named = "" if line.topic == topic else line.topic
        text.append(f"{named:<11}", "bold").append(f"{mark} {line.state:<9}", style)
        text.append(f"{line.text}\n")
        if line.remedy:
            text.append(f"{'':<{_INDENT}}→ {line.remedy}\n", "cyan")
        topic = line.topic
    counts = Counter(line.state for line in lines)
    rest = ", ".join(f"{state}: {counts[state]}" for state in reversed(State) if counts[state])
    return text.append(f"\n{rest}", "bold")
