"""The teachers of one distill stage: opened, compared with the student, and asked.

    [[stage.teacher]] ─┬─ model ── a frozen Decoder in the learner's process ──┐
                       └─ url ──── ScoringClient (served_teacher.py) ──────────┴─> Tops of a step

All decoders are held for the whole stage, in the learner's compute dtype: a step that mixes tasks
needs several of them, and to read one from disk takes longer than a step of a small student. What
that takes is an event of the run. What an endpoint said of a step is durable before it is used, in
`teachers/` of the run directory: asked again, it could round otherwise. The files of steps that a
checkpoint has behind it are removed.
"""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from interlock.chips import device
from interlock.config.distilling import TeacherSettings, teacher_names, teacher_of
from interlock.config.origins import of_stage
from interlock.config.stages import StageSettings
from interlock.errors import ModelError, RunError, TrainingError
from interlock.learner.distillation import TeacherSums, tops
from interlock.learner.losses.divergences import Tops
from interlock.learner.packing import TrainingGroup
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.fetch import find_model
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.served_teacher import Read, Said, ScoringClient
from interlock.recipes.stage import Stage
from interlock.records.metrics import TeacherMetrics
from interlock.regular import read_regular
from interlock.rundir.files import write_atomically
from interlock.text import one_line

_MOST_KEPT = 1 << 32  # bytes of one step


class EarlierStage(NamedTuple):
    """A teacher that this run has yet to make: its tokenizer and context are the run's own."""

    name: str


Place = Path | str | EarlierStage


class FoundTeachers(NamedTuple):
    """The teachers of a stage, before any weight is read."""

    places: list[Place]  # of each, in order: its directory, or what its endpoint calls it
    context: int  # tokens of a text that all of them can read
    files: list[Path]  # that they hang on


def find_teachers(
    teachers: Sequence[TeacherSettings], tokenizer: Tokenizer, context: int, k: int
) -> FoundTeachers:
    """Look all of them up, and see that they have the student's tokenizer, and that endpoints tell
    k alternatives.

    Raises UserError when one is not there or has another; TrainingError when an endpoint does not
    answer.
    """
    places: list[Place] = []
    files: list[Path] = []
    for name, settings in zip(teacher_names(teachers), teachers, strict=True):
        if settings.model is None:
            with ScoringClient(name, settings) as client:
                context = min(context, client.check(tokenizer, k))
                assert client.model is not None
                places.append(client.model)
            continue
        if (earlier := of_stage(settings.model)) is not None:
            places.append(EarlierStage(earlier))
            continue
        directory = find_model(settings.model)
        context = min(context, read_architecture(directory).context)
        compare(name, Tokenizer.load(directory), tokenizer)
        files += [directory / "config.json", directory / "tokenizer.json"]
        files += sorted(directory.glob("*.safetensors"))
        places.append(directory)
    return FoundTeachers(places, context, files)


def compare(name: str, theirs: Tokenizer, ours: Tokenizer) -> None:
    """Raise ModelError where a teacher's tokens are not the student's: ids mean other words."""
    remedy = "take a teacher of the student's family, or train on its answers (sft)"
    words, own = theirs.entries(), ours.entries()
    for token in sorted(words.keys() | own.keys()):
        there, here = (each.get(token, (None, None))[0] for each in (words, own))
        if there != here:
            there, here = (one_line(repr(each), 40) for each in (there, here))
            raise ModelError(
                f"teacher {name!r} has another tokenizer: its token {token} is {there}, the "
                f"student's is {here}; {remedy}"
            )
    rules, kept = (json.loads(each.definition()) for each in (theirs, ours))
    for part in ("model", "normalizer", "pre_tokenizer"):
        if rules.get(part) != kept.get(part):
            raise ModelError(
                f"teacher {name!r} has another tokenizer: the same words, but its {part} splits "
                f"texts otherwise; {remedy}"
            )


class Teachers:
    """Those of one stage. `vocab`: words that the student and all decoders have rows for."""

    def __init__(
        self,
        stage: Stage[Any],
        settings: Sequence[TeacherSettings],
        found: FoundTeachers,
        temperature: float,
    ) -> None:
        """Reads the weights. Raises ModelError, and ConfigError where a key is gone."""
        self.names = teacher_names(settings)
        self._stage, self._settings, self._temperature = stage, settings, temperature
        with ExitStack() as stack:
            self._asked: list[Decoder | ScoringClient] = [
                _held(stage, each, place)
                if not isinstance(place, str)
                else stack.enter_context(ScoringClient(name, each, place))
                for name, each, place in zip(self.names, settings, found.places, strict=True)
            ]
            self._open = stack.pop_all()
        self.decoders = [each for each in self._asked if isinstance(each, Decoder)]
        rows = [decoder.arch.vocab for decoder in (stage.learner.decoder, *self.decoders)]
        self.vocab = min(rows)
        if self.decoders:
            size = sum(p.numel() * p.element_size() for d in self.decoders for p in d.parameters())
            dtypes = ", ".join(sorted({str(d.dtype).removeprefix("torch.") for d in self.decoders}))
            message = f"teachers held in {dtypes}: {len(self.decoders)}, of {size / 2**20:.1f} MB"
            stage.event("teacher_held", message)

    def __enter__(self) -> "Teachers":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def of(self, task: str) -> int:
        """Who teaches a task: a place in `names`."""
        place = teacher_of(self._settings, task)
        assert place is not None  # config has seen to it
        return place

    def tops(
        self, step: int, groups: Sequence[TrainingGroup], whose: Sequence[int], k: int
    ) -> tuple[Tops, dict[int, TeacherMetrics]]:
        """What each group's teacher says of its tokens, and what it took; groups are in the order
        of their teachers.

        Raises TrainingError when an endpoint does not answer.
        """
        parts, cost = [], {}
        for place in sorted(set(whose)):
            own = [group for group, each in zip(groups, whose, strict=True) if each == place]
            began = time.perf_counter()
            part, cost[place] = self._ask(step, place, own, k)
            parts.append(part)
            seconds = time.perf_counter() - began
            cost[place] = msgspec.structs.replace(cost[place], seconds=seconds)
        return Tops(*map(torch.cat, zip(*parts, strict=True))), cost

    def _ask(
        self, step: int, place: int, groups: Sequence[TrainingGroup], k: int
    ) -> tuple[Tops, TeacherMetrics]:
        asked, learner = self._asked[place], self._stage.learner
        if isinstance(asked, Decoder):
            chunk = self._stage.recipe.learner.logits_chunk
            how = self._temperature, chunk, min(k, self.vocab), self.vocab
            return tops(asked, learner, groups, *how), TeacherMetrics()
        texts = [Read(group.prompt, text) for group in groups for text in group.completions]
        path = self._kept(step, place)
        count = sum(len(text.completion) for text in texts)
        if (kept := _read_kept(path, count, k)) is not None:
            return kept, TeacherMetrics()
        tokens, retries = asked.tokens, asked.retries

        def late(why: str) -> None:
            self._stage.event("teacher_late", f"step {step}: {why}")

        told = _told(asked.score(texts, k, late), k)
        if k and (largest := int(told.ids.max())) >= self.vocab:
            raise TrainingError(
                f"teacher {asked.name!r} tells of token {largest}; the student has {self.vocab}"
            )
        self._forget_old()
        write_atomically(path, msgspec.msgpack.encode([_bytes(each) for each in told]))
        spent = asked.tokens - tokens, asked.retries - retries
        return told, TeacherMetrics(asked_tokens=spent[0], retries=spent[1])

    def _kept(self, step: int, place: int) -> Path:
        directory = self._stage.run.path / "teachers"
        directory.mkdir(exist_ok=True)
        return directory / f"stage{self._stage.index:02d}-step{step:06d}-{place}.msgpack"

    def _forget_old(self) -> None:
        newest = self._stage.run.latest_checkpoint()
        if newest is None:
            return
        for path in (self._stage.run.path / "teachers").glob("stage*-step*-*.msgpack"):
            stage, step, _ = path.stem.split("-")
            at = int(stage.removeprefix("stage")), int(step.removeprefix("step"))
            if at <= (newest.stage, newest.step):
                path.unlink(missing_ok=True)


def measured(found: TeacherSums, cost: TeacherMetrics) -> TeacherMetrics:
    """What is logged of a teacher: means over its tokens, and what asking it took."""
    if not found.tokens:
        return cost
    return msgspec.structs.replace(
        cost,
        tokens=found.tokens,
        reverse_kl=found.reverse_kl / found.tokens,
        divergence=found.divergence / found.tokens,
        overlap=found.overlap / found.tokens,
        overlap_advantage=found.advantage / found.tokens,
    )


def _held(
    stage: Stage[StageSettings], settings: TeacherSettings, place: Path | EarlierStage
) -> Decoder:
    learner, wanted = stage.learner, settings.dtype
    stage.sinks.phase("opening a teacher")
    directory = stage.left_by(place.name) if isinstance(place, EarlierStage) else place
    dtype = learner.decoder.dtype if wanted == "auto" else device.dtype(wanted)
    decoder = load_decoder(directory, dtype, learner.device, dtype).requires_grad_(False)
    if dtype == learner.decoder.dtype and (kernel := stage.recipe.learner.kernel) != "auto":
        decoder.use(kernel)
    return decoder


def _told(said: Sequence[Said], k: int) -> Tops:
    own = [value for each in said for value in each.own]
    ids = [row for each in said for row in each.ids]
    values = [row for each in said for row in each.logprobs]
    return Tops(
        torch.tensor(own, dtype=torch.float32),
        torch.tensor(ids, dtype=torch.int64).view(len(own), k),
        torch.tensor(values, dtype=torch.float32).view(len(own), k),
    )


def _bytes(column: torch.Tensor) -> bytes:
    return column.numpy().tobytes()


def _read_kept(path: Path, count: int, k: int) -> Tops | None:
    """What a teacher said of `count` tokens; None: it was not asked yet."""
    if not path.exists():
        return None
    try:
        columns = msgspec.msgpack.decode(read_regular(path, _MOST_KEPT), type=list[bytearray])
        own, ids, values = columns
        return Tops(
            torch.frombuffer(own, dtype=torch.float32).view(count),
            torch.frombuffer(ids, dtype=torch.int64).view(count, k)
            if k
            else torch.zeros(count, 0, dtype=torch.int64),
            torch.frombuffer(values, dtype=torch.float32).view(count, k)
            if k
            else torch.zeros(count, 0),
        )
    except (OSError, ValueError, RuntimeError, msgspec.MsgspecError) as error:
        raise RunError(
            f"{path} is damaged ({one_line(str(error), 60)}); remove it: the teacher is asked again"
        ) from None
