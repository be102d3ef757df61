"""The live page's own code, in node where there is one: what comes while it loads a run."""

import json
import shutil
import subprocess
from importlib.resources import files

import pytest

NODE = shutil.which("node")
AROUND = """
let answers = [];
const show = () => {}, later = show, showRollouts = show, chosen = 0, step = null;
const fetch = () => new Promise((done) => answers.push((told) =>
  done({ ok: true, json: async () => told })));
const points = (...x) => ({ x, y: x, low: x, high: x });
const told = (x, generation, ...more) => ({ run: 0, x, generation, event_count: 0, events: [],
  status: "running", series: { a: points(...more) } });
const settle = () => new Promise((done) => setTimeout(done, 5));
(async () => {
  take({ run: 0, again: true });
  %s
  console.log(JSON.stringify([answers.length, runs[0].status, runs[0].series.a.x]));
})();
"""


def shown(what_comes: str) -> list[object]:
    """-> answers that were asked for, the run's status, and what is drawn of it"""
    assert NODE is not None
    page = files("interlock.report.live").joinpath("page", "page.js").read_text(encoding="utf-8")
    code = page[: page.index("// Answers are asked for")].replace("let chosen = 0;", "")
    code = code.replace("let step = null;", "")
    done = subprocess.run([NODE, "-e", code + AROUND % what_comes], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    found: list[object] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize(
    ("what_comes", "found"),
    [
        (  # of which the answer has the first
            "take(told(2, 1, 1, 2)); take(told(4, 1, 2, 3, 4)); answers[0](told(3, 1, 1, 2, 3)); "
            "await settle(); take(told(5, 1, 5));",
            [1, "running", [1, 2, 3, 4, 5]],
        ),
        (  # nothing new but how it ended
            "take({ ...told(2, 1), series: {}, status: 'finished' }); "
            "answers[0](told(2, 1, 1, 2)); await settle();",
            [1, "finished", [1, 2]],
        ),
        (  # cut again: what was told before does not hold, and is asked for once more
            "take(told(4, 1, 3, 4)); take({ run: 0, again: true }); take(told(3, 2, 2, 3)); "
            "answers[0](told(4, 1, 1, 2, 3, 4)); await settle(); "
            "answers[1](told(2, 2, 1, 2)); await settle();",
            [2, "running", [1, 2, 3]],
        ),
    ],
)
def test_what_comes_while_a_run_is_loaded_is_not_lost(what_comes: str, found: list[object]) -> None:
    assert shown(what_comes) == found


NAMED = """
const element = (tag, given, ...inside) => ({ text: given.text, title: given.title,
  class: given.class, style: {}, inside });
const places = {};
const $ = (name) => places[name] ??= { replaceChildren(...all) { this.all = all; } };
const document = {}, colour = () => "red", choose = () => {}, chosen = 0;
const runs = [{ name: "a", status: "running", trouble: "", reason: "" },
  { name: "b", status: "finished", trouble: "a damaged line", reason: "" },
  { name: "c", status: "gone", trouble: "cannot read c any more", reason: "" }];
showRuns();
console.log(JSON.stringify(places.runs.all.map((each) =>
  [each.title, ...each.inside.slice(2).map((chip) => [chip.class, chip.text])])));
"""


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_trouble_of_a_run_that_is_not_chosen_is_marked() -> None:
    assert NODE is not None
    page = files("interlock.report.live").joinpath("page", "page.js").read_text(encoding="utf-8")
    good = next(line for line in page.splitlines() if line.startswith("const GOOD"))
    code = page[page.index("function showRuns") : page.index("const last =")]
    done = subprocess.run([NODE, "-e", good + code + NAMED], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == [
        ["a: running", ["chip good", "running"]],
        ["b: finished · a damaged line", ["chip good", "finished"], ["chip bad", "!"]],
        ["c: gone · cannot read c any more", ["chip bad", "gone"], ["chip bad", "!"]],
    ]


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_times_axes_and_legends_of_small_and_equal_figures() -> None:
    """Steps of a tiny model take no "0 s", zeros stand on an axis to 1, dashes are told apart."""
    assert NODE is not None
    page = files("interlock.report.live").joinpath("page")
    basics, charts = (
        page.joinpath(f"{name}.js").read_text("utf-8") for name in ("basics", "charts")
    )
    asked = """
const uPlot = { sync: () => ({}), rangeNum: (low, high) => ["own", low, high] };
const addEventListener = () => {}, matchMedia = () => ({ addEventListener() {} });
const told = () => console.log(JSON.stringify([
  [0, 0.004, 0.288, 9.94, 9.96, 59.6, null].map(duration),
  [roomy(null, 0, 0), roomy(null, 0, 2), ofShares(null, 0, 0.5)],
  strokeOf({ colour: "red", dash: [] }), strokeOf({ colour: "red", dash: [6, 4] }),
  CHARTS.filter((each) => ["Entropy", "Reward", "Staleness"].includes(each.title)).map(unitOf)]));
"""
    done = subprocess.run(
        [NODE, "-e", basics + asked + charts + "told();"], capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == [
        ["0 s", "0.004 s", "0.29 s", "9.9 s", "10 s", "1 min 0 s", "–"],
        [[0, 1], ["own", 0, 2], [0, 0.525]],
        "red",
        "repeating-linear-gradient(90deg, red 0px 6px, transparent 6px 10px)",
        ["", "nats per token", ""],
    ]
