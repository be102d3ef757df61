"""`interlock plan`: which chips, how long, how much."""

import argparse
import csv
import io
import json
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlock import __version__
from interlock.cli.numbers import no_empty_path
from interlock.config.reading import load_recipe
from interlock.errors import ConfigError
from interlock.records.sealing import SealedDocument, sealed
from interlock.text import error_line, one_line, visible

if TYPE_CHECKING:
    from interlock.plan.plan import PlanInputs
    from interlock.plan.profile import Likeness

_MOST_BYTES = 64 << 20
_OF_PLANS = (
    *("--chips", "--model", "--link", "--mean-tokens", "--prompt-tokens", "--verify-s"),
    *("--weight-bytes", "--prices", "--profile", "--like", "--find"),
)
_PUBLISHED = Path()  # --validate without a file
_LINK = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(b|B)(?:it)?(?:/s|ps)?")
_POWERS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def add_plan(choices: Any) -> None:
    """The verb's place in the parser."""
    verb = choices.add_parser(
        "plan",
        help="say how long a recipe takes on chips, what it costs, and whether it fits",
        description="Nothing is run and nothing is fetched. docs/planning.md has the formulas, "
        "and how far off they are on published runs.",
    )
    verb.add_argument("recipe", nargs="?", metavar="RECIPE.toml")
    verb.add_argument(
        "settings", nargs="*", metavar="key=value", help="change the recipe's settings"
    )
    verb.add_argument(
        "--chips",
        metavar="NxCHIP:ROLE,…",
        help='"64xH800:learner,128x910B:generator"; a role is learner, generator or both',
    )
    verb.add_argument("--model", metavar="MODEL", help="sizes of: a name or a config.json")
    verb.add_argument(
        "--link",
        metavar="RATE",
        help="to each generator's node: 10Gb/s, 1.25GB/s (default: own)",
    )
    for name, what in (
        ("--mean-tokens", "of an answer"),
        ("--prompt-tokens", "of a prompt"),
        ("--verify-s", "seconds to judge an answer"),
    ):
        verb.add_argument(name, type=_positive, metavar="N", help=f"{what} (default: assumed)")
    verb.add_argument("--weight-bytes", type=_positive, metavar="N", help="of generators: 1 is fp8")
    for name, metavar, what in (
        ("--prices", "FILE", "[[price]] tables, with dates"),
        ("--profile", "FILE", "interlock bench --json, or a TOML table"),
        ("--like", "RUN", "learn from a run's seconds"),
    ):
        verb.add_argument(name, action=_Once, type=Path, metavar=metavar, help=what)
    verb.add_argument("--ran-on", metavar="NxCHIP:ROLE,…", help="of --like (default: --chips)")
    verb.add_argument("--find", action="store_true", help="search placements of --chips")
    verb.add_argument(
        "--validate",
        nargs="?",
        type=no_empty_path,
        const=_PUBLISHED,
        metavar="FILE.csv",
        help="recompute the published runs, or those of a table like plan/data/rl_runs.csv",
    )
    verb.add_argument("--picture", type=Path, metavar="FILE.svg", help="of --validate")
    verb.add_argument("--json", action="store_true", help="print one JSON object")
    verb.set_defaults(verb=plan)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        shown = one_line(repr(text), 40)
        raise argparse.ArgumentTypeError(f"{shown} is no number above 0 and below 1e9")
    return value


def plan(given: argparse.Namespace) -> None:
    """Plan, search, or recompute what others have published."""
    _check_together(given)
    if given.validate is not None:
        _validate(given)
        return
    if not given.recipe or not given.chips:
        raise ConfigError("give RECIPE.toml and --chips COUNTxCHIP:ROLE,… (or --validate)")
    from interlock.plan import told
    from interlock.plan.chips import parse_stock
    from interlock.plan.plan import plan_of
    from interlock.plan.roles import roles_of
    from interlock.plan.search import find_placements

    recipe = load_recipe(Path(given.recipe), given.settings)
    stocks = parse_stock(given.chips)
    inputs, stocks, likeness = _inputs(given, recipe, stocks)
    if given.find:
        found = find_placements(inputs, stocks)
        kind = SealedDocument.SEARCH
        _tell(given, likeness, kind, told.tree_of_search(found), told.lines_of_search(found))
        return
    generates = any(stage.generates for stage in recipe.stage)
    roles = roles_of(stocks, generates)
    if given.link and (roles.turns or not generates):
        print("--link is not used: no chips generate for others", file=sys.stderr)
    planned = plan_of(inputs, roles)
    tree, lines = told.tree_of(planned, inputs), told.lines_of(planned, inputs)
    _tell(given, likeness, SealedDocument.PLAN, tree, lines)


def _check_together(given: argparse.Namespace) -> None:
    """Raise ConfigError where one option makes another mean nothing."""
    if given.validate is None and given.picture is not None:
        raise ConfigError("--picture draws what --validate finds; give that, too")
    if given.ran_on and not given.like:
        raise ConfigError("--ran-on says where the run of --like ran; give that, too")
    idle = [name for name in _OF_PLANS if getattr(given, name.lstrip("-").replace("-", "_"))]
    if given.validate is not None and (given.recipe or idle):
        raise ConfigError(
            f"--validate recomputes published runs, without {idle[0] if idle else given.recipe}; "
            "leave one of them out"
        )


def _tell(
    given: argparse.Namespace,
    likeness: "Likeness | None",
    document: SealedDocument,
    tree: dict[str, Any],
    lines: Iterable[str],
) -> None:
    """As asked for, and before it what was learned from the run of --like."""
    from interlock.plan import told

    if given.json:
        like = {} if likeness is None else {"like": told.tree_of_likeness(likeness)}
        _print_sealed(document, tree | like)
        return
    if likeness is not None:
        _show([*told.lines_of_likeness(likeness), ""])
    _show(lines)


def _print_sealed(document: SealedDocument, tree: dict[str, Any]) -> None:
    made = {"interlock": __version__, "created": time.time()}
    print(json.dumps(sealed(document, tree | made), indent=2))


def _inputs(
    given: argparse.Namespace, recipe: Any, stocks: list[Any]
) -> tuple["PlanInputs", list[Any], "Likeness | None"]:
    """All that a plan is made of, a profile and a run among it."""
    import msgspec

    from interlock.plan.chips import parse_stock
    from interlock.plan.plan import PlanInputs
    from interlock.plan.roles import roles_of
    from interlock.plan.shapes import model_shape
    from interlock.plan.workload import GivenFigures

    inputs = PlanInputs(
        recipe=recipe,
        shape=model_shape(given.model or recipe.model.path),
        given=GivenFigures(given.mean_tokens, given.prompt_tokens, given.verify_s),
        link=_rate(given.link) if given.link else None,
        prices=_prices(given.prices, recipe.prices),
        weight_bytes=given.weight_bytes,
    )
    if given.profile:
        inputs, stocks = _profiled(given.profile, inputs, stocks)
    if not given.like:
        return inputs, stocks, None
    from interlock.plan.profile import like

    ran = parse_stock(given.ran_on) if given.ran_on else stocks
    if given.profile and given.ran_on:
        inputs, ran = _profiled(given.profile, inputs, ran)
    likeness = like(given.like, roles_of(ran, True), inputs)
    figures = GivenFigures(
        given.mean_tokens or likeness.mean_tokens,
        given.prompt_tokens or likeness.prompt_tokens,
        given.verify_s,
    )
    inputs = msgspec.structs.replace(inputs, given=figures, factors=likeness.factors, measured=True)
    return inputs, stocks, likeness


def _prices(given: Path | None, of_recipe: str | None) -> Any:
    """Those of --prices, else the recipe's own; beside the shipped ones."""
    from interlock.plan.prices import of_no_chip, read_prices

    if given is not None:
        file, named = given, "--prices"
    elif of_recipe is not None:
        file, named = Path(of_recipe).expanduser(), "prices"
    else:
        return {}
    found = read_prices(file, named)
    for each in of_no_chip(found):
        line = f"{named} {file}: the catalogue has no chip {one_line(repr(each), 40)}; not used"
        print(visible(line), file=sys.stderr)
    return found


def _profiled(
    path: Path, inputs: "PlanInputs", stocks: list[Any]
) -> tuple["PlanInputs", list[Any]]:
    """The chips of one kind are those that were measured; of several the profile's own are."""
    import msgspec

    from interlock.plan.profile import applied, read_profile

    profile = read_profile(path)
    wanted = _measured(path, profile.chip, list(dict.fromkeys(each.chip.name for each in stocks)))
    rates = inputs.rates
    changed = []
    for stock in stocks:
        if stock.chip.name == wanted:
            rates, chip = applied(profile, stock.chip)
            stock = msgspec.structs.replace(stock, chip=chip)
        changed.append(stock)
    return msgspec.structs.replace(inputs, rates=rates, measured=True), changed


def _measured(path: Path, chip: str, kinds: list[str]) -> str:
    """Which of several kinds of chips a profile is of. Raises ConfigError where it does not say."""
    from interlock.plan.chips import called_by_driver, find

    among = f"--chips has {' and '.join(kinds)}"
    known = called_by_driver(chip) if chip else None
    found = one_line(chip, 60) if known is None else known.name
    if len(kinds) == 1:  # a CPU is in no catalogue by its name
        named = chip and not (known is None and kinds[0] == find("cpu").name)
        if named and found != kinds[0]:
            print(visible(f"--profile {path} is of {found}, taken for {kinds[0]}"), file=sys.stderr)
        return kinds[0]
    if not chip:
        raise ConfigError(
            f'--profile {path} does not say of which chip it is; {among}: add chip = "…"'
        )
    if found not in kinds:
        raise ConfigError(f"--profile {path} is of {found}, and {among}; give one of these")
    return found


class _Once(argparse.Action):
    """Of two the first would be dropped unsaid."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            raise ConfigError(f"{option} is given twice; give one")
        setattr(namespace, self.dest, value)


def _rate(text: str) -> float:
    """'10Gb/s' -> bytes per second. A small b is bits."""
    match = _LINK.fullmatch(text.strip())
    rate = float(match[1]) * _POWERS[match[2]] / (8 if match[3] == "b" else 1) if match else 0.0
    if not 0 < rate < 1e15:
        raise ConfigError(
            f"--link {one_line(repr(text), 40)}: write a rate such as 10Gb/s (bits) or 1.25GB/s"
        )
    return rate


def _show(lines: Any) -> None:
    for line in lines:
        print(visible(line))


def _validate(given: argparse.Namespace) -> None:
    from interlock.plan.validate import validate
    from interlock.plan.validation_told import lines_of, tree_of

    found = validate(None if given.validate is _PUBLISHED else _rows(given.validate))
    if given.picture:
        from interlock.plan.picture import picture
        from interlock.rundir.files import write_atomically

        write_atomically(given.picture, picture(found).encode(), over=b"<svg ")
    if given.json:
        print(json.dumps(tree_of(found), indent=2))
        return
    _show(lines_of(found))


def _rows(path: Path) -> list[dict[str, str]]:
    """A table in the columns of plan/data/rl_runs.csv."""
    from interlock.plan.chips import data_file
    from interlock.regular import read_regular

    try:
        text = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
        rows = [dict(row) for row in csv.DictReader(io.StringIO(text))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--validate {path}: {error_line(error)}; give a CSV file") from None
    needed = list(data_file("rl_runs.csv")[0])
    missing = [name for name in needed if not rows or name not in rows[0]]
    if missing:
        raise ConfigError(f"--validate {path}: no column {missing[0]!r}; there are to be {needed}")
    return [{name: value or "" for name, value in row.items() if name} for row in rows]
