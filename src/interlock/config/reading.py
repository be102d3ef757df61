"""Turns TOML, and settings given on the command line, into a checked Recipe.

    recipe.toml + key=value overrides ──load_recipe──> Recipe ──to_tree──> config.json of the run

Unknown keys and wrong types are errors that name the setting, the value and what is expected.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
import msgspec.inspect

from interlock.config.checks import check_combinations, check_task
from interlock.config.rewards import AnyReward
from interlock.config.schema import Recipe
from interlock.config.secrets import is_secret, shown_override
from interlock.config.serving import ServeSettings
from interlock.config.stages import LORA_FACTOR, STAGES
from interlock.config.tasks import EvaluationSettings, TaskSettings
from interlock.errors import ConfigError
from interlock.records.rl import Sampling
from interlock.regular import read_regular
from interlock.text import error_line, hide_credentials, one_line

_MOST_BYTES = 1 << 20  # of a recipe
_SHOWN = 80  # characters of a wrong value
_KINDS = {bool: "bool", int: "int", float: "float", str: "str", list: "array", dict: "object"}

SettingsTable = TypeVar("SettingsTable", bound=msgspec.Struct)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply `section.key=value` overrides (TOML values or bare strings).

    Raises ConfigError, which names the file, the setting and what is expected.
    """
    tree = _read(path, "recipe")
    if overrides:
        tree.setdefault("generator", [{}])  # the default one, for overrides to change
    for override in overrides:
        _apply(tree, override)
    return parse_recipe(tree, source=str(path))


def recipe_of_run(
    config: dict[str, Any], overrides: Sequence[str] = (), source: str = "the run"
) -> Recipe:
    """A run's recorded config with overrides, as `load_recipe`. Raises ConfigError."""
    tree: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
    for override in overrides:
        _apply(tree, override)
    return parse_recipe(tree, source)


def load_serving(path: Path | None, overrides: Sequence[str] = ()) -> ServeSettings:
    """As `load_recipe`, of a serve.toml; None: the defaults. Raises ConfigError."""
    tree, source = ({}, "serve") if path is None else (_read(path, "settings"), str(path))
    tree.setdefault("replica", [{}])
    if isinstance(fleet := tree.setdefault("fleet", {}), dict):
        fleet.setdefault("kind", "local")
    for override in overrides:
        _apply(tree, override)
    settings = _convert(tree, ServeSettings, source)
    for conflict in settings.conflicts():
        raise ConfigError(f"{source}: {hide_credentials(conflict)}")
    return settings


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        # utf-8-sig: editors add the mark
        return tomllib.loads(read_regular(path, _MOST_BYTES).decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no {what} at {path}; give the path of a .toml file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory; give the path of a .toml file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"cannot read {one_line(str(path), 80)}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply; no setting needs that") from None
    except ValueError as error:  # tomllib's own, and Python's of a number without end
        raise ConfigError(f"{path} is not valid TOML: {error_line(error, 200)}") from None


def parse_task(name: str, held_out: int, overrides: Sequence[str] = ()) -> TaskSettings:
    """The [stage.task] table of an evaluation without a recipe. Raises ConfigError."""
    tree: dict[str, Any] = {"name": name, "held_out": held_out}
    for override in overrides:
        _apply(tree, override)
    task = _convert(tree, TaskSettings, source=f"task {name}")
    check_task(task, f"task {name}")
    return task


def parse_evaluation(tree: dict[str, Any]) -> EvaluationSettings:
    """How an evaluation without a recipe asks. Raises ConfigError."""
    how = _convert(tree, EvaluationSettings, source="eval")
    for conflict in how.conflicts():
        raise ConfigError(conflict)
    return how


def parse_sampling(
    temperature: float, max_tokens: int, stop: list[str], budget: int | None = None, words: str = ""
) -> Sampling:
    """Sampling from the command line; `budget` and `words`: of thinking. Raises ConfigError."""
    tree = {"temperature": temperature, "max_tokens": max_tokens, "stop": stop}
    tree |= {"thinking_budget": budget, "thinking_words": words}
    return _convert(tree, Sampling, source="sampling")


def parse_recipe(tree: dict[str, Any], source: str = "recipe") -> Recipe:
    """Turn a plain tree into a Recipe. Raises ConfigError on any unknown key or wrong value."""
    recipe = _rated(_convert(tree, Recipe, source, _listed(tree)), tree)
    check_combinations(recipe, source)
    return recipe


def _rated(recipe: Recipe, tree: dict[str, Any]) -> Recipe:
    """With the rates of stages that say none, where an adapter learns: see LORA_FACTOR."""
    if recipe.learner.lora is None:
        return recipe
    stages = []
    for stage, said in zip(recipe.stage, tree["stage"], strict=True):
        if stage.optimizer is not None and "lr" not in said.get("optimizer", {}):
            rate = LORA_FACTOR * stage.optimizer.lr
            optimizer = msgspec.structs.replace(stage.optimizer, lr=rate)
            stage = msgspec.structs.replace(stage, optimizer=optimizer)
        stages.append(stage)
    return msgspec.structs.replace(recipe, stage=stages)


def to_tree(section: msgspec.Struct) -> dict[str, Any]:
    """A resolved config as plain dicts and lists; `parse` reads a recipe's back."""
    return msgspec.to_builtins(section)


def _listed(tree: dict[str, Any]) -> dict[str, Any]:
    """With a list of tasks in every stage, where [stage.task] stands for a list of one."""
    stages = tree.get("stage")
    if not isinstance(stages, list):
        return tree
    return tree | {"stage": [_with_tasks(stage) for stage in stages]}


def _with_tasks(stage: Any) -> Any:
    if not isinstance(stage, dict) or "task" not in stage:
        return stage
    task = stage["task"]
    if isinstance(task, dict):
        return stage | {"task": [task]}
    return stage if task is not None else stage | {"task": []}


def _convert(
    tree: dict[str, Any],
    kind: type[SettingsTable],
    source: str,
    listed: dict[str, Any] | None = None,
) -> SettingsTable:
    """`listed`: the tree to convert, where it is not the one that was written."""
    try:
        return msgspec.convert(tree if listed is None else listed, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {explain(str(error), tree, kind)}") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one dotted `key=value`. A list of one table, such as a lone [[stage]], needs no index."""
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", key):
        shown = shown_override(override)
        raise ConfigError(f"cannot read the override {shown!r}; write section.key=value")
    if _has_surrogates(text):  # what Python makes of bytes that are no UTF-8
        raise ConfigError(f"{key} is given what is no UTF-8; write it in that")
    parts: list[str] = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parts):
        where = ".".join(parts[: depth + 1])
        if isinstance(node, list):
            node = _element(node, part, where)
            if part.isdigit():
                if depth == len(parts) - 1:
                    raise ConfigError(f"cannot set {key}: set one of its keys, or the whole list")
                continue
        if not isinstance(node, dict):
            raise ConfigError(f"cannot set {key}: {'.'.join(parts[:depth])} is not a table")
        if depth == len(parts) - 1:
            node[part] = _value(text)
        else:
            node = node.setdefault(part, {})


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _element(tables: list[Any], part: str, where: str) -> Any:
    if part.isdigit() and int(part) < len(tables):
        return tables[int(part)]
    if len(tables) == 1 and not part.isdigit():
        return tables[0]
    raise ConfigError(
        f"cannot set {where}: give an index from 0 to {len(tables) - 1} after the list"
    )


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def explain(message: str, tree: Any, kind: type[msgspec.Struct]) -> str:
    """Turn msgspec's "Expected `int`, got `str` - at `$.stage[0].steps`" into our words."""
    complaint, _, path = message.partition(" - at `")
    keys = re.findall(r"\.([A-Za-z0-9_]+)|\[(\d+|\.\.\.)\]", path)
    where = _where(tree, [name or index for name, index in keys], complaint)
    if unknown := re.fullmatch(r"Object contains unknown field `(.+)`", complaint):
        return _unknown(f"{where}.{unknown[1]}" if where else unknown[1], kind)
    if missing := re.fullmatch(r"Object missing required field `(.+)`", complaint):
        setting = f"{where}.{missing[1]}" if where else missing[1]
        return f"the setting {setting!r} is missing"
    value = _lookup(tree, where)
    if complaint == "Expected `array`, got `object`":
        return f"there may be several of [{where}]; write its heading in two brackets: [[{where}]]"
    if complaint == "Expected `object`, got `array`":
        return f"there is one {where or 'table'}; write its heading in one bracket: [{where}]"
    complaint = complaint[0].lower() + complaint[1:].replace("`", "").replace("object", "a table")
    if where.startswith("stage") and where.endswith(".kind"):
        what, tables = ("reward", get_args(AnyReward)) if ".reward" in where else ("stage", STAGES)
        kinds = [str(table.__struct_config__.tag) for table in tables]
        complaint = f"the kinds of {what} are {', '.join(kinds)}"
    if not complaint.startswith("expected array") and (choices := _choices(where, kind)):
        complaint = f"choose one of {choices}"
    shown = one_line(hide_credentials(repr(value)), _SHOWN)
    remedy = _remedy(complaint, where, value)
    if is_secret(where, str(value)):
        shown, remedy = "…", _remedy(complaint, where, "…")
    return f"{where or 'the recipe'} = {shown}: {complaint}{remedy}"


def _where(tree: Any, keys: Sequence[str], complaint: str) -> str:
    """The dotted path of what was wrong. msgspec says "..." for a key of a table of any keys."""
    got = re.search("got `(.+)`", complaint)
    path: list[str] = []
    for key in keys:
        inside = _lookup(tree, ".".join(path))
        if isinstance(inside, dict) and key.isdigit() and key not in inside:
            continue  # of the list that a lone table stands for
        if key == "..." and got and isinstance(inside, dict):
            wrong = [name for name, value in inside.items() if _KINDS.get(type(value)) == got[1]]
            key = wrong[0] if wrong else key
        path.append(key)
    return ".".join(path)


def _unknown(setting: str, kind: type[msgspec.Struct]) -> str:
    """What is said of a setting that there is not: the one meant, or else its neighbours."""
    table, _, leaf = _plain(setting).rpartition(".")
    known = [path for path, _ in _settings(msgspec.inspect.type_info(kind), "")]
    near, options = nearest(setting, kind), f"{table}.options".lstrip(".")
    misspelt = difflib.get_close_matches(leaf, ["options"], cutoff=0.8)
    if options in known and near in (None, options) and not misspelt:
        near = f"{options}.{leaf}"
    if near:
        return f"unknown setting {setting!r}; did you mean {near!r}?"
    beside = [path.rpartition(".") for path in known]
    names = dict.fromkeys(name for of, _, name in beside if of == table)
    told = f"[{table}] has" if table else "there are"
    return f"unknown setting {setting!r}; {told} {', '.join(names)}"


def _remedy(complaint: str, where: str, value: Any) -> str:
    """How a value of the wrong type is to be written."""
    leaf = where.rpartition(".")[2]
    listed = "expected array" in complaint or "list of" in complaint
    if listed and isinstance(value, str) and re.fullmatch(r"\[.+\]", value):
        items = ", ".join(json.dumps(item.strip(" '")) for item in value[1:-1].split(","))
        return f"; a shell takes quotes away, so write '{where}=[{items}]'"
    match complaint, value:
        case "expected str, got bool" | "expected str, got int" | "expected str, got float", _:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            return f"""; write {leaf} = "{text}", and on the command line '{where}="{text}"'"""
        case (("expected int, got str" | "expected float, got str" | "expected bool, got str"), _):
            bare = re.fullmatch(r"[+-]?[\d.]+([eE][+-]?\d+)?|true|false", value)
            return "; write it without quotes" if bare else _either(complaint)
        case "expected bool, got int", _:
            return _either(complaint)
        case "expected array, got str", _:
            return f"; write {leaf} = [{json.dumps(value)}]"
        case "expected int, got float", float() if value.is_integer():
            return f"; write {int(value)}"
    return ""


def _either(complaint: str) -> str:
    return "; write true or false" if "bool" in complaint else ""


def _lookup(tree: Any, where: str) -> Any:
    for part in filter(None, where.split(".")):
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and part.isdigit():
            tree = tree[int(part)]
    return tree


def nearest(setting: str, kind: type[msgspec.Struct] = Recipe) -> str | None:
    """The known setting that an unknown one was most likely meant to be."""
    known = sorted({path for path, _ in _settings(msgspec.inspect.type_info(kind), "")})
    plain = _plain(setting)
    leaf = plain.rsplit(".", 1)[-1]
    same_leaf = [path for path in known if path.rsplit(".", 1)[-1] == leaf]
    like = [path for path in known if _alike(leaf, path.rsplit(".", 1)[-1])]
    near = difflib.get_close_matches(
        plain, same_leaf or like, n=1, cutoff=0.0 if same_leaf else 0.6
    )
    if not near:  # in another table, by its last word alone
        leaves = {path.rsplit(".", 1)[-1]: path for path in like}
        near = [leaves[word] for word in difflib.get_close_matches(leaf, leaves, 1, cutoff=0.8)]
    return near[0] if near else None


def _alike(name: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, name, other).ratio() > 0.5


def _plain(setting: str) -> str:
    """A dotted path without indices of lists."""
    return ".".join(part for part in setting.split(".") if not part.isdigit())


def _choices(setting: str, kind: type[msgspec.Struct]) -> str:
    """The values that an enumerated setting may have, as text; "" for any other setting."""
    for path, found in _settings(msgspec.inspect.type_info(kind), ""):
        if isinstance(found, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
            found = found.item_type
        several = found.types if isinstance(found, msgspec.inspect.UnionType) else (found,)
        for each in several if path == _plain(setting) else ():
            if isinstance(each, msgspec.inspect.LiteralType):
                lists = any(isinstance(other, msgspec.inspect.ListType) for other in several)
                values = (str(value) or '""' for value in each.values)
                return ", ".join(values) + ", or a list of names" * lists
    return ""


def _settings(
    kind: msgspec.inspect.Type, prefix: str
) -> Iterator[tuple[str, msgspec.inspect.Type]]:
    """Every setting below `kind` with its type, as dotted paths without list indices."""
    match kind:
        case msgspec.inspect.StructType():
            for field in kind.fields:
                yield prefix + field.encode_name, field.type
                yield from _settings(field.type, f"{prefix}{field.encode_name}.")
        case msgspec.inspect.ListType():
            yield from _settings(kind.item_type, prefix)
        case msgspec.inspect.UnionType():
            for member in kind.types:
                yield from _settings(member, prefix)
