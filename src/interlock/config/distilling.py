"""`[[stage.teacher]]`: whose probabilities a student is brought towards, and where it runs.

model = "runs/x"      in the learner's process: its whole distribution is at hand
url = "http://…"      an endpoint that scores prompts: some log-probabilities of every token
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from interlock.config.fields import Positive, Rate, SettingsTable
from interlock.config.judging import address_conflicts

DistillLoss = Literal["jsd", "policy_gradient", "topk"]
# As many as a serving engine tells of a prompt's token.
Alternatives = Annotated[int, Meta(ge=1, le=64)]
Concurrency = Annotated[int, Meta(ge=1, le=256)]


class TeacherSettings(SettingsTable, frozen=True):
    """`[[stage.teacher]]`: either `model`, or `url` with what follows it."""

    name: str = ""  # in metrics and events; "": teacher-<index>
    tasks: list[str] = []  # what the tasks that it teaches are called; []: all that no other has
    # As [model] path, or "stage:NAME": what an earlier stage left. Loaded frozen, and held for the
    # whole stage.
    model: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # of its weights; "auto": the learner's
    url: str | None = None  # OpenAI-compatible, with prompt_logprobs: `interlock serve`, vLLM
    served: str | None = None  # the model's name there; None: the first that the endpoint lists
    key_variable: str | None = None  # the environment variable that holds the endpoint's key
    timeout_s: Rate = 60.0  # for one request; what fails for a reason that may pass is sent again
    backoff_s: Rate = 1.0  # before it is; doubles up to a minute
    patience_s: Rate = 600.0  # for one text to be scored, all its requests together
    concurrent: Concurrency = 8  # requests at a time
    most_mb: Positive = 256  # of one answer


_SERVED = (
    "served",
    "key_variable",
    "timeout_s",
    "backoff_s",
    "patience_s",
    "concurrent",
    "most_mb",
)


def teacher_names(teachers: Sequence[TeacherSettings]) -> list[str]:
    return [each.name or f"teacher-{place}" for place, each in enumerate(teachers)]


def teacher_of(teachers: Sequence[TeacherSettings], task: str) -> int | None:
    """Which of them teaches a task: one that names it, else one that names none; None: nobody."""
    for place, each in enumerate(teachers):
        if task in each.tasks:
            return place
    return next((place for place, each in enumerate(teachers) if not each.tasks), None)


def teacher_conflicts(
    teachers: Sequence[TeacherSettings], tasks: Sequence[str], loss: DistillLoss, temperature: float
) -> Iterator[str]:
    """Why some teachers cannot teach these tasks with this loss; as StageSettings.conflicts."""
    for place, each in enumerate(teachers):
        for why in _unlike(each, loss, temperature):
            yield f"teacher.{place}{why}"
    for name, times in Counter(teacher_names(teachers)).items():
        if times > 1:
            yield f"teacher: {times} are named {name!r}; give each a name of its own"
    named = Counter(task for each in teachers for task in set(each.tasks))
    for task, times in named.items():
        if task not in tasks:
            yield f"teacher: {task!r} is no task of the stage, which has {', '.join(tasks)}"
        elif times > 1:
            yield f"teacher: {times} teach {task!r}; leave it to one of them"
    if sum(not each.tasks for each in teachers) > 1:
        yield "teacher: several name no tasks; say which of them teaches what: tasks = […]"
    for task in tasks:
        if teacher_of(teachers, task) is None:
            yield f"teacher: nobody teaches {task!r}; name it in the tasks of one"


def _unlike(each: TeacherSettings, loss: DistillLoss, temperature: float) -> Iterator[str]:
    if (each.model is None) == (each.url is None):
        yield ": give either model or url"
        return
    defaults = {field.name: field.default for field in msgspec.structs.fields(TeacherSettings)}
    for name in ("dtype",) if each.model is None else _SERVED:
        if getattr(each, name) != defaults[name]:
            of = "url" if each.model is None else "model"
            yield f".{name} says nothing of a teacher with {of}; remove it"
    if each.url is None:
        return
    if loss == "jsd":
        yield '.url tells no whole distribution, which loss = "jsd" needs; take "topk"'
    if temperature != 1:
        yield f".url scores at temperature 1, not at sampling.temperature = {temperature}; set 1"
    for why in address_conflicts(each.url):
        yield f".url {why}"
