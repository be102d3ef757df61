"""Every setting of `interlock serve`, with its unit and default: serve.toml, or key=value.

    serve.toml + key=value ──reading.load_serving──> ServeSettings

`[[replica]]` is a GeneratorSettings with other defaults, `[fleet]` a FleetSettings as a recipe's.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from interlock.config.checks import (
    engine_conflicts,
    name_conflicts,
    nul_conflicts,
    process_conflicts,
)
from interlock.config.fields import NonNegative, Positive, Rate
from interlock.config.schema import FleetSettings, GeneratorSettings, GuardSettings, by_name

Port = Annotated[int, Meta(ge=0, le=65535)]


class ReplicaSettings(GeneratorSettings, frozen=True):
    """`[[replica]]`: as `[[generator]]`, but the first token counts, and no bit does."""

    patience: NonNegative = 0
    prefill_chunk: NonNegative = 256
    prefix_cache_mb: NonNegative = 512


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`: what one request, or one connection, may take; more is refused."""

    body_mb: Positive = 8  # of a request
    header_kb: Positive = 32  # of a request's line and headers together
    header_s: Rate = 10.0  # for a request's line and headers to arrive
    body_s: Rate = 30.0  # for its body
    keep_alive_s: Positive = 30  # a connection without a request
    stall_s: Rate = 60.0  # a stream whose reader takes nothing
    connections: Positive = 4096  # at a time
    messages: Positive = 4096  # of a conversation
    prompts: Positive = 256  # of one /v1/completions
    choices: Annotated[int, Meta(gt=0, le=4096)] = 512  # n times prompts
    max_tokens: NonNegative = 0  # of an answer; 0: what is left of the context
    deadline_s: Rate = 600.0  # for a whole answer, the queue included
    sessions: Positive = 4096  # that are recorded at a time
    sessions_mb: Positive = 1024  # of memory for what they record
    session_idle_s: Rate = 3600.0  # a session that nobody asks for is forgotten


class ServeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it."""

    host: str = "127.0.0.1"
    port: Port = 8000  # 0: any that is free
    names: list[str] = []  # under which the model is served; the first is told. []: its path's last
    # Host names, beside IP addresses and localhost, that a request may be for: another's page
    # cannot make a browser ask us under its own name.
    hosts: list[str] = []
    origins: list[str] = []  # of pages elsewhere ("https://chat.example") that may ask
    reasoning: Literal["both", "reasoning_content", "reasoning"] = "both"  # the field of thinking
    # How the model writes: "auto" reads it off template and vocabulary (serve/prompts/families.py).
    thinking: str = "auto"
    tool_form: str = "auto"
    log_prompts: bool = False  # what was asked, beside who asked and how long it took
    queue: Positive = 1024  # sequences that wait; more are refused
    drain_s: Rate = 30.0  # at the end, for what runs
    load_drain_s: Rate = 30.0  # before other weights are loaded, for what a replica has
    stall_s: Rate = 300.0  # without any token of a replica that has work; then it is lost
    examine_s: Rate = 60.0  # between two canaries of a replica that serves
    chat_template: str | None = None  # a Jinja file that replaces the model's own
    unqualified: bool = False  # use devices that no certificate admits
    limits: LimitSettings = LimitSettings()
    replica: Annotated[list[ReplicaSettings], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: [ReplicaSettings()]
    )
    fleet: FleetSettings = FleetSettings(kind="local")
    guard: GuardSettings = GuardSettings()  # how far a replica may be from the reference
    # The name of the replica that the others are compared with; None: see docs/replicas.md.
    reference: str | None = None

    def replicas(self) -> dict[str, GeneratorSettings]:
        """The settings of every replica, by its name."""
        return by_name(self.replica, "replica")

    def conflicts(self) -> Iterator[str]:
        """What is wrong though each setting is right: what follows the file's name, and a colon."""
        if self.fleet.kind == "inline":
            yield 'fleet.kind = "inline": replicas are processes; set "local" or "ray"'
        yield from _unread(self.fleet, FleetSettings(), _FLEET_OF_RUNS, "fleet")
        yield from _unread(self.guard, GuardSettings(), _GUARD_OF_RUNS, "guard")
        yield from name_conflicts(self.replica, "replica")
        yield from engine_conflicts(self.replica, "replica")
        yield from process_conflicts(self.replica, "replica")
        yield from nul_conflicts({"host": self.host, "chat_template": self.chat_template})
        if self.reference is not None and self.reference not in self.replicas():
            named = ", ".join(self.replicas())
            yield f"reference = {self.reference[:64]!r} is no replica; there are {named}"
        for index, each in enumerate(self.replica):
            if each.resources and self.fleet.kind != "ray":
                yield f'replica.{index}.resources is what Ray reserves; set fleet.kind = "ray"'
            if each.sync_url is not None:
                yield f"replica.{index}.sync_url is a recipe's; remove it"
        for name in self.names:
            if not name or not name.isprintable() or len(name) > 200:
                yield f"names holds {name[:40]!r}; give names of 1 to 200 characters that print"


_FLEET_OF_RUNS = ("unit", "unit_s", "qualify_s", "requalify")
_GUARD_OF_RUNS = ("min_tokens",)


def _unread(
    given: msgspec.Struct, usual: msgspec.Struct, names: Sequence[str], table: str
) -> Iterator[str]:
    """What a run reads of a table and serving does not."""
    for name in names:
        if getattr(given, name) != getattr(usual, name):
            yield f"{table}.{name} is for a run's generators; remove it"
