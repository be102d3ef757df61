"""`interlock plan` as it is called: text, JSON, light, and one line for each slip."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from interlock.cli import main
from interlock.cli.planning import _rate
from interlock.config.reading import load_recipe, to_tree
from interlock.records.metrics import RolloutMetrics, StepMetrics, StepSeconds
from interlock.rundir import RunDir

RECIPE = Path(__file__).parents[2] / "src" / "interlock" / "recipes" / "shipped" / "r1-zero.toml"


def _call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["plan", *arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_a_plan_in_words_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(RECIPE), "--chips", "8xH800:learner,16x910B:generator", "--model", "Qwen3-8B"]
    code, text, _ = _call(capsys, *asked, "stage.0.sampling.max_tokens=4096")
    assert code == 0
    for word in ("memory, GB a chip", "publication", "staleness", "chip-hours", "kWh", "assumed:"):
        assert word in text, word
    assert "910B is read as" in text and "constants fitted" in text
    code, text, _ = _call(capsys, *asked, "--json")
    tree = json.loads(text)
    assert code == 0 and tree["fits"] and tree["hours"]["low"] < tree["hours"]["high"]
    kinds = {each["kind"] for each in tree["constants"].values()}
    assert kinds <= {"measured", "vendor", "fitted", "assumed"} and "fitted" in kinds


def test_a_search_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(RECIPE), "--chips", "4xH800,4xH20", "--find"]
    code, text, _ = _call(capsys, *asked, "--json")
    front = json.loads(text)["front"]
    assert code == 0 and front and front[0]["hours"] <= front[-1]["hours"]
    assert "placements tried" in _call(capsys, *asked)[1]


def test_a_search_says_what_it_learned_from_a_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A run that generated for 5 s a step: the factor is that over its own plan's."""
    recipe = load_recipe(RECIPE, ["model.path=hf:Qwen/Qwen3-8B"])
    with RunDir.create(tmp_path / "run", to_tree(recipe), {}) as run:
        for step in (1, 2, 3):
            spent = StepSeconds(generate=5.0, step=9.0)
            made = RolloutMetrics(length=500.0)
            run.log(StepMetrics(stage=0, step=step, kind="grpo", rollout=made, seconds=spent))
    asked = [str(RECIPE), "--chips", "4xH800,4xH20", "--find", "--model", "Qwen3-8B"]
    asked += ["--like", str(tmp_path / "run"), "--ran-on", "8xH800:both"]
    code, text, _ = _call(capsys, *asked, "--json")
    tree = json.loads(text)
    assert code == 0 and tree["front"]
    assert tree["like"]["parts"]["generation"]["happened_s"] == 5.0
    assert tree["like"]["parts"]["generation"]["planned_s"] > 0
    code, text, _ = _call(capsys, *asked)
    assert code == 0 and text.index("happened") < text.index("placements tried")


EMPTY = ("--prices", "--profile", "--like", "--model", "--link", "--ran-on", "--validate")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--chips", "8xH80"], "no chip 'H80'"),
        (["--chips", "8xH100:teacher"], "--chips: cannot read"),
        (["--chips", "8xH100", "--model", "Qwen9"], "no sizes of 'Qwen9'"),
        (["--chips", "8xH100", "--link", "10"], "--link '10'"),
        (["--chips", "8xH100", "--mean-tokens", "-1"], "'-1' is no number above 0 and below 1e9"),
        (["--chips", "8xH100", "--prices", "none.toml"], "--prices none.toml"),
        (["--chips", "8xH100", "--like", "none"], "no run in none"),
        *((["--chips", "8xH100", each, ""], f"{each}: '' names nothing") for each in EMPTY),
        *(
            (["--chips", "8xH100", each, "a", each, "b"], f"{each} is given twice; give one")
            for each in ("--prices", "--profile", "--like")
        ),
        (["--chips", "8xH100", "--ran-on", "8xH20"], "--ran-on says where the run of --like ran"),
        (["--validate"], "without "),
        ([], "--chips"),
    ],
)
def test_slips_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    code, out, err = _call(capsys, str(RECIPE), *arguments)
    assert code == 2 and not out and told in err and err.count("\n") == 1


def test_a_table_without_its_columns_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("run,model\nx,y\n")
    code, _, err = _call(capsys, "--validate", str(file))
    assert code == 2 and "no column 'org'" in err


def test_a_table_is_recomputed_without_what_a_plan_is_made_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = _call(capsys, "--validate", "--chips", "4xH800")
    assert code == 2 and not out and "without --chips; leave one of them out" in err


def test_what_a_plan_does_not_use_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(
        '[[price]]\nchip = "H8OO"\nper_hour = 2.0\ncurrency = "USD"\n'
        'date = 2026-11-01\nsource = "an offer"\n'
    )
    asked = [str(RECIPE), "--chips", "8xH800", "--model", "Qwen3-0.6B", "--link", "10Gb/s"]
    code, out, err = _call(capsys, *asked, "--prices", str(file), "--mean-tokens", "99999999")
    assert code == 0 and "its max_tokens allows no 99,999,999" in out
    assert "the catalogue has no chip 'h8oo'; not used" in err and "--link is not used" in err


@pytest.mark.parametrize(("days", "old"), [(180, False), (200, True)])
def test_an_old_price_is_said_to_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, days: int, old: bool
) -> None:
    """As the meter of costs says it. In days before the present."""
    date = datetime.now(UTC).date() - timedelta(days=days)
    file = tmp_path / "prices.toml"
    file.write_text(
        '[[price]]\nchip = "H800"\nper_hour = 2.0\ncurrency = "USD"\n'
        f'date = {date}\nsource = "an offer"\n'
    )
    asked = [str(RECIPE), "--chips", "8xH800", "--model", "Qwen3-0.6B", "--prices", str(file)]
    code, out, _ = _call(capsys, *asked)
    assert code == 0 and (f"{date}, 200 days ago: look it up; prices.toml, an offer" in out) is old
    assert (f"{date}; prices.toml, an offer" in out) is not old


def test_a_picture_takes_the_place_of_a_picture_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interlock.plan.validate.validate", lambda rows: None)
    monkeypatch.setattr("interlock.plan.validation_told.lines_of", lambda found: [])
    monkeypatch.setattr("interlock.plan.picture.picture", lambda found: "<svg />")
    recipe, drawn = tmp_path / "recipe.toml", tmp_path / "drawn.svg"
    recipe.write_text('name = "mine"\n')
    for _ in range(2):
        assert _call(capsys, "--validate", "--picture", str(drawn))[0] == 0
    assert drawn.read_text() == "<svg />"
    code, _, err = _call(capsys, "--validate", "--picture", str(recipe))
    assert (code, recipe.read_text()) == (2, 'name = "mine"\n')
    assert (
        err == f"interlock: {recipe} is there already and holds something else; give a new name\n"
    )


def test_rates_of_links() -> None:
    assert _rate("10Gb/s") == 1.25e9 and _rate("1.25 GB/s") == 1.25e9
    assert _rate("400Gbit/s") == 50e9


def test_a_plan_brings_no_heavy_package() -> None:
    code = (
        "import sys, interlock.plan.told, interlock.plan.profile, interlock.plan.validate;"
        "print(*[m for m in ('torch', 'numpy', 'rich', 'plotly', 'jinja2') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


@pytest.mark.parametrize("recipe", sorted(RECIPE.parent.glob("*.toml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("chips", ["16xH800", "16xH800:learner,32x910B:generator"])
def test_every_shipped_recipe_is_planned(
    capsys: pytest.CaptureFixture[str], recipe: Path, chips: str
) -> None:
    code, text, error = _call(capsys, str(recipe), "--chips", chips)
    assert code == 0, error
    if recipe.stem == "r1-671b":
        assert "fits nowhere" in text or "fewest" in text
    else:
        assert "chip-hours" in text


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("", 'does not say of which chip it is; --chips has H800 SXM and H20-96G: add chip = "…"'),
        ('chip = "MI300X"', "is of MI300X, and --chips has H800 SXM and H20-96G"),
        ('chip = "AMD EPYC"', "is of AMD EPYC, and --chips has H800 SXM and H20-96G"),
    ],
)
def test_a_profile_is_of_one_of_several_kinds_of_chips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], profile: str, told: str
) -> None:
    file = tmp_path / "profile.toml"
    file.write_text(f"{profile}\nbandwidth = 3e12\n")
    asked = [str(RECIPE), "--model", "Qwen3-8B", "--profile", str(file), "--json"]
    two = [*asked, "--chips", "8xH800:learner,16xH20:generator"]
    code, _, error = _call(capsys, *two)
    assert code == 2 and told in error and error.count("\n") == 1
    code, text, error = _call(capsys, *asked, "--chips", "8xH800:both")  # of one kind: taken for it
    name = profile.removeprefix("chip = ").strip('"')
    said = f"--profile {file} is of {name}, taken for H800 SXM\n" if name else ""
    assert error == said
    assert code == 0 and json.loads(text)["chips"][0]["bandwidth"] == 3e12
    file.write_text('chip = "H20"\nbandwidth = 3e12\n')
    chips = {each["name"]: each for each in json.loads(_call(capsys, *two)[1])["chips"]}
    assert chips["H20-96G"]["bandwidth"] == 3e12 and chips["H800 SXM"]["bandwidth"] == 3.352e12
