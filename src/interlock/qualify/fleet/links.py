"""One trial of a link, seen from whoever qualifies the fleet: who takes part, what each said.

begin: LinkPlan to rank 0 ──Listening──> LinkPlan to the others ──> LinkMeasured │ LinkBroken
"""

from collections.abc import Callable, Sequence

from interlock.chips import vendors
from interlock.processes.deadline import Deadline
from interlock.qualify.fleet.found import DeviceFound, LinkFound, NodeFound, TogetherFound
from interlock.qualify.fleet.talk import LinkBroken, LinkMeasured, LinkPlan, LinkWord, Listening

_SETTLE_S = 3.0  # from the first who breaks to hearing the others
# What the others say when one has failed.
_OF_PEERS = ("Connection closed", "Connection reset", "Broken pipe")

Ask = Callable[[str, LinkPlan], None]


class LinkTrial:
    """Some nodes that take part in one trial; they are asked when it is made."""

    def __init__(
        self, name: str, nodes: Sequence[NodeFound], ask: Ask, *, largest: int, seconds: float
    ) -> None:
        self.name = name
        self._nodes, self._ask = nodes, ask
        self._largest, self._seconds = largest, seconds
        self._devices = _devices(nodes)
        self._measured: dict[int, LinkMeasured] = {}
        self._broken: dict[int, LinkBroken] = {}
        self._settling: Deadline | None = None
        self._send(0, None)

    @property
    def over(self) -> bool:
        """Whether everyone said how it ended; or one that it broke, a moment ago."""
        ended = len(self._measured) + len(self._broken)
        return ended == len(self._nodes) or (self._settling is not None and self._settling.over)

    def hear(self, rank: int, word: LinkWord) -> None:
        match word:
            case Listening(port):
                for other in range(1, len(self._nodes)):
                    self._send(other, (self._nodes[0].address, port))
            case LinkMeasured():
                self._measured[rank] = word
            case LinkBroken():
                self._broken[rank] = word
                self._settling = self._settling or Deadline(_SETTLE_S)

    def lost(self, name: str, reason: str) -> None:
        """A node is gone."""
        for rank, node in enumerate(self._nodes):
            if node.name == name and rank not in self._measured:
                self.hear(rank, LinkBroken(f"{name} was lost: {reason}"))

    def give_up(self, reason: str) -> None:
        self._broken.setdefault(0, LinkBroken(reason, hangs=True))

    def fill(self, link: LinkFound) -> None:
        """What was found, of two."""
        link.device = " and ".join(dict.fromkeys(self._devices))
        link.error, link.hangs = self._failure()
        if not link.error:
            first = self._measured[0]
            link.up, link.down, link.latency_s = first.up, first.down, first.latency_s
            link.off, link.worst = self._worst()

    def together(self) -> TogetherFound:
        """What was found, of all."""
        error, _ = self._failure()
        if error:
            return TogetherFound(len(self._nodes), error=error)
        off, worst = self._worst()
        seconds = max(each.sum_s for each in self._measured.values())
        return TogetherFound(len(self._nodes), seconds, off, worst)

    def _send(self, rank: int, store: tuple[str, int] | None) -> None:
        node = self._nodes[rank]
        plan = LinkPlan(
            self.name,
            self._devices[rank],
            rank,
            len(self._nodes),
            node.address,
            store,
            self._largest,
            self._seconds,
        )
        self._ask(node.name, plan)

    def _worst(self) -> tuple[float, str]:
        worst = max(self._measured.values(), key=lambda each: each.off)
        return worst.off, worst.worst

    def _failure(self) -> tuple[str, bool]:
        """Why it broke, the gravest reason first, and whether it hangs."""
        if not self._broken:
            return "", False
        rank, said = min(
            self._broken.items(), key=lambda item: any(word in item[1].reason for word in _OF_PEERS)
        )
        at = "" if said.hangs else f"{self._nodes[rank].name}: "
        return at + said.reason, said.hangs


def _devices(nodes: Sequence[NodeFound]) -> list[str]:
    """The first sound device of each; where one has none, or they are of two kinds, the hosts'.

    A chip that is bad shall not be taken for a bad link, and no collective spans two vendors.
    """
    sound = [next(filter(_is_sound, node.devices), None) for node in nodes]
    names = [each.name for each in sound if each is not None]
    if len(names) < len(nodes) or len({*map(vendors.kind_of, names)}) > 1:
        return ["cpu"] * len(nodes)
    return names


def _is_sound(device: DeviceFound) -> bool:
    return not device.error and not device.failed
