"""The model card, README.md: what the model is, what it was made of, and what that came to.

    run directory ──> front matter (YAML that hubs read) + Markdown

Nothing is told that the run does not record; of paths on this machine only the last part.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from interlock import __version__, hub
from interlock.config.reading import parse_recipe
from interlock.config.schema import Recipe
from interlock.config.stages import StageSettings
from interlock.export.source import Source
from interlock.models.fetch import SMOLLM2, cache_dir
from interlock.models.files import read_object
from interlock.report.summary import Evaluation, before_after, evaluations
from interlock.rundir import RunDir, RunView
from interlock.text import one_line

Front = dict[str, Any]


def run_card(source: Source) -> tuple[Front, str]:
    """Front matter and text of the card of what a run made. Raises RunError, or ConfigError."""
    assert source.run is not None
    with closing(RunDir.read(source.run)) as run:
        recipe = parse_recipe(run.config, source=f"{source.run}/config.json")
        kinds = list(dict.fromkeys(stage.kind for stage in recipe.stage))
        front = _front(_base(recipe.model.path), ["interlock", *kinds])
        return front, "".join(_text(source.name, recipe, run))


def model_card(source: Source) -> tuple[Front, str]:
    """Of a plain model that brings no card of its own."""
    front = _front(_base(source.name, source.directory), ["interlock"])
    return front, f"# {_plain(source.name)}\n\nExported by Interlock {__version__}, as it was.\n"


def rendered(front: Front, text: str) -> str:
    """Every value as JSON, which is YAML, so that no text can be mistaken for something else."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in front.items()]
    return f"---\n{''.join(lines)}---\n\n{text}"


def _front(base: tuple[str | None, str | None], tags: list[str]) -> Front:
    repository, licence = base
    front: Front = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front["tags"] = tags
    if repository:
        front["base_model"] = repository
    if licence:
        front["license"] = licence
    return front


def _base(path: str, directory: Path | None = None) -> tuple[str | None, str | None]:
    """The base model's repository on the hub, and its licence; None: not known here.

    Nothing is fetched for that.
    """
    if path.startswith(hub.PREFIX):
        return hub.parts(path)[0], None
    place = cache_dir() / "models" / SMOLLM2 if path == SMOLLM2 else Path(path).expanduser()
    place = directory or place
    if not place.is_dir():
        return None, None
    told = read_object(place, "SOURCE.json") or {}
    repository = str(told.get("model") or "").removeprefix("https://huggingface.co/") or None
    licence = told.get("license")
    return repository, licence.lower() if isinstance(licence, str) else None


def _text(name: str, recipe: Recipe, run: RunView) -> Iterator[str]:
    repository, licence = _base(recipe.model.path)
    base = repository or Path(recipe.model.path).name
    yield f"# {_plain(name)}\n\n"
    yield f"`{_plain(base)}`, post-trained with Interlock by the recipe `{_plain(recipe.name)}` "
    yield f"(run: {run.status}).\n\n"
    yield f"Licence: {licence or 'not known here; see that of the base model'}.\n\n"
    yield "## Accuracy on held-out problems\n\n"
    yield from _accuracy(run)
    yield "\n## Recipe\n\n"
    yield _table(("stage", "kind", "steps", "task or data", "learning rate"), _stages(recipe))
    yield f"\nSeed of the run {recipe.seed}; the settings in full are at the end.\n"
    yield "\n## Chips\n\n"
    yield _table(("worker", "device", "dtype", "engine", "certificate"), _chips(recipe, run))
    for event in run.events():
        if event.kind == "unqualified":
            yield f"\n- {_plain(event.message)}"
    yield "\n\n## Versions\n\n"
    yield _table(("package", "version"), sorted(run.manifest.versions.items()))
    if run.manifest.inputs:
        yield "\n## Data and templates\n\n"
        yield _table(("what", "content"), sorted(run.manifest.inputs.items()))
    yield "\n## Settings\n\n```json\n"
    yield f"{json.dumps(_without_places(run.config), indent=1, ensure_ascii=False)}\n```\n"


def _accuracy(run: RunView) -> Iterator[str]:
    pair = before_after(run, evaluations(run, run.metrics()))
    if pair is None:
        yield "Not measured.\n"
        return
    rows = [("before" if pair.after else "measured", *_measured(pair.before))]
    if pair.after is not None:
        rows.append(("after", *_measured(pair.after)))
    yield _table(("", "accuracy", "95 % interval", "problems", "stage, step"), rows)
    asked = pair.before.samples
    how = "Greedy answers" if asked == 1 else f"{asked} drawn answers to each problem"
    yield f"\n{how}; the intervals are Wilson's.\n"


def _measured(found: Evaluation) -> tuple[str, ...]:
    between = found.interval
    interval = f"{between[0]:.1%} to {between[1]:.1%}" if between else "not known"
    place = f"{found.stage}, {found.step}"
    return f"{found.accuracy:.1%}", interval, str(found.problems or "not known"), place


def _stages(recipe: Recipe) -> list[tuple[str, ...]]:
    return [
        (str(number), stage.kind, str(stage.length), _data(stage), _rate(stage))
        for number, stage in enumerate(recipe.stage)
    ]


def _data(stage: StageSettings) -> str:
    parts = [Path(data).name] if (data := getattr(stage, "data", None)) else []
    if stage.origin is not None:
        parts.insert(0, f"from {_without_places(stage.origin)}")
    parts += [f"{Path(each.data).name} mixed in" for each in getattr(stage, "mix", [])]
    for task in stage.task:
        options = json.dumps(_without_places(task.options), ensure_ascii=False)
        parts.append(f"{task.called} {options}, seed {task.seed}")
    return "; ".join(parts) or "none"


def _rate(stage: StageSettings) -> str:
    optimizer = getattr(stage, "optimizer", None)
    return "none" if optimizer is None else f"{optimizer.lr:g}"


def _chips(recipe: Recipe, run: RunView) -> list[tuple[str, ...]]:
    """The learner, and every worker by the last that was logged of it."""
    learner = recipe.learner
    rows: list[tuple[str, ...]] = [
        ("learner", learner.device, learner.dtype, "torch", _trust(learner.device, run))
    ]
    workers = {name: each for line in run.metrics() for name, each in line.workers.items()}
    for name, each in sorted(workers.items()):
        facts = (each.device, each.dtype, each.engine, each.trust)
        rows.append((name, *(fact or "not recorded" for fact in facts)))
    return rows


def _trust(device: str, run: RunView) -> str:
    if any(e.kind == "unqualified" and e.facts.get("device") == device for e in run.events()):
        return "unqualified"
    return "cpu, which needs none" if device == "cpu" else "train"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(map(_plain, line))} |\n" for line in lines)


def _plain(text: str) -> str:
    """On one line, and nothing that Markdown or HTML would take for its own."""
    return one_line(text, 200).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _without_places(tree: Any) -> Any:
    """Settings without what tells of this machine: of a path the last part, of a URL nothing."""
    if isinstance(tree, dict):
        return {k: {} if k == "env" else _without_places(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_without_places(each) for each in tree]
    if isinstance(tree, str) and "://" in tree:
        return "…"
    return Path(tree).name if isinstance(tree, str) and tree.startswith(("/", "~", ".")) else tree
