import base64
import html
import json
import tomllib
import unicodedata
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from interlock.config.reading import parse_recipe, to_tree
from interlock.errors import RunError
from interlock.records.metrics import (
    StepMetrics,
    StepSeconds,
    UpdateMetrics,
    WorkerMetrics,
    WorkerState,
)
from interlock.records.rl import Verdict, VerdictStatus
from interlock.report import write_report
from interlock.report.page import to_toml
from interlock.report.sheet import json_in_script
from interlock.rundir import RunDir

MakeRun = Callable[..., RunDir]
ATTACKS = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "--></style></pre><img src=x onerror=alert(3)>",
    "{{ 7 * 7 }}{% raw %}",
    "'\"><a href='https://example.org'>",
]


class Page(HTMLParser):
    """The elements, the visible text and the scripts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def attribute(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    @property
    def figures(self) -> dict[str, Any]:
        """The figures by their id without "plot-", which stand before plotly and the script."""
        names = [name for name in self.attribute("id") if name and name.startswith("plot-")]
        texts = self.scripts[: len(names)]
        return {n.removeprefix("plot-"): json.loads(t) for n, t in zip(names, texts, strict=True)}


def full_run(run: RunDir, grpo_step: Callable[..., Any], make_group: Callable[..., Any]) -> None:
    run.log(StepMetrics(stage=0, step=0, kind="grpo", accuracy=0.0))
    for step in (1, 2, 3):
        run.ledger.record(0, step, [make_group(f"q{step}", ("mm", 0.0), ("nn", 1.0))], [step])
        run.log(grpo_step(0, step, accuracy=0.5 if step == 3 else None))
    run.ledger.record_evaluation(0, 0, [make_group(f"e{i}", ("old", 0.0)) for i in range(2)])
    after = [make_group("e0", ("new", 1.0)), make_group("e1", ("new", 0.0))]
    run.ledger.record_evaluation(0, 3, after)
    run.event("worker_lost", "worker w1 ended with signal 9")


def test_the_page_shows_the_run(
    make_run: MakeRun, grpo_step: Callable[..., Any], make_group: Callable[..., Any]
) -> None:
    with make_run() as run:
        full_run(run, grpo_step, make_group)
    path = write_report(run.path)
    assert path == run.path / "report.html"
    page = Page(path)
    for words in ("finished", "0.0 %", "50.0 %", "+50.0", "95 % interval 9.5 % to 90.5 %"):
        assert words in " ".join(page.text.split())
    for words in ("worker lost", "signal 9", "2.13.0", 'kind = "grpo"', "e0!", "q2!", "old", "new"):
        assert words in page.text
    reward = page.figures["reward"]["data"][0]
    assert (reward["x"], reward["y"]) == ([0, 1, 2, 3], [None, 0.01, 0.02, 0.03])
    accuracy = page.figures["accuracy"]["data"][0]
    assert (accuracy["x"], accuracy["y"]) == ([0, 3], [0.0, 0.5])
    counts = " ".join(page.text.split())
    assert "steps 3 " in counts  # step 0 is the evaluation before the first
    for words in (
        "tokens generated 6,000",
        "groups learned from, or skipped 24",
        "all rewards equal 6",
        "reward 0 3",
    ):
        assert words in counts
    shown = {f"plot-{name}" for name in page.figures}
    assert shown == {name for name in page.attribute("id") if name and name.startswith("plot-")}


def test_the_page_stands_alone(
    make_run: MakeRun, grpo_step: Callable[..., Any], make_group: Callable[..., Any]
) -> None:
    run = make_run()
    full_run(run, grpo_step, make_group)
    page = Page(write_report(run.path))
    assert page.attribute("src") == page.attribute("href") == []
    assert not {"link", "iframe", "object", "embed", "img"} & {tag for tag, _ in page.elements}
    style = (Path(write_report(run.path)).read_text().split("<style>")[1]).split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    plotly, script = page.scripts[-2:]
    [policy] = [text for text in page.attribute("content") if text and "script-src" in text]
    assert policy.startswith("default-src 'none';")
    digests = [base64.b64encode(sha256(x.encode()).digest()).decode() for x in (plotly, script)]
    assert policy.endswith(f"script-src 'sha256-{digests[0]}' 'sha256-{digests[1]}'")


def test_the_page_shows_what_workers_are_trusted_with(make_run: MakeRun) -> None:
    with make_run({"name": "x", "stage": [{"kind": "grpo"}]}) as run:
        trusts = {"a": "generate", "b": "unqualified"}
        workers = {
            name: WorkerMetrics(WorkerState.READY, device="npu", trust=trust)
            for name, trust in trusts.items()
        }
        run.log(StepMetrics(stage=0, step=1, workers=workers))
    text = " ".join(Page(write_report(run.path)).text.split())
    assert "a npu ready trust: generate" in text and "b npu ready no certificate" in text


def test_the_page_shows_the_fleet(make_run: MakeRun, fleet_run: Any) -> None:
    guard = {"warn": 1e-3, "quarantine": 1e-2}
    with make_run({"name": "x", "stage": [{"kind": "grpo"}], "guard": guard}) as run:
        metrics, events = fleet_run
        for line in metrics:
            run.log(line)
        for event in events:
            run.event(event.kind, event.message, event.worker)
    page = Page(write_report(run.path))
    text = " ".join(page.text.split())
    for words in (
        "workers 2 at work at the end 1 restarts 2",
        "torch-0 torch 2.13.0 · bfloat16 · cpu (2 cores) generating 40",
        "vllm-0 vllm 0.32.0 · bfloat16 · cpu (AVX-512) quarantined 26",
        "problems set aside 1",
        "events: worker quarantined 1",
        "Groups made",
    ):
        assert words in text, words
    assert text.index("k3 1.2e-2 is above 0.01") < text.index(
        "Fleet"
    )  # what one wants to know first
    assert "k3 warn" in page.attribute("class")  # vllm-0, above the one and not the other
    assert "k3 bad" not in page.attribute("class")
    assert "waiting for groups" in [trace["name"] for trace in page.figures["time"]["data"]]
    shown = {f"plot-{name}" for name in page.figures}
    assert {"plot-states", "plot-weights"} < shown
    assert shown == {name for name in page.attribute("id") if name and name.startswith("plot-")}


def test_a_generator_in_the_learners_process_is_no_fleet(make_run: MakeRun) -> None:
    recipe = {"name": "x", "stage": [{"kind": "grpo"}], "fleet": {"kind": "inline"}}
    with make_run(recipe) as run:
        facts = {"generator-0": WorkerMetrics(WorkerState.READY, tokens=9, seconds_generating=1.0)}
        run.log(StepMetrics(stage=0, step=1, workers=facts))
    page = Page(write_report(run.path))
    assert "Fleet" not in page.text and "worker-speed" not in page.figures


@pytest.mark.parametrize("attack", ATTACKS)
def test_foreign_text_is_inert(
    make_run: MakeRun,
    grpo_step: Callable[..., Any],
    make_group: Callable[..., Any],
    attack: str,
) -> None:
    config = {"name": attack, "model": {"path": attack}, "stage": [{"kind": attack, attack: 1}]}
    with pytest.raises(ValueError), make_run(config) as run:
        scored = make_group(attack, (attack, 0.0), ("x", 0.0))
        scored.verdicts[1] = Verdict.failed(VerdictStatus.ERROR, attack)
        run.ledger.record(0, 1, [scored], [0])
        run.ledger.record_evaluation(0, 0, [make_group(attack, (attack, 0.0))])
        run.ledger.record_evaluation(0, 1, [make_group(attack, (attack, 1.0))])
        worker = WorkerMetrics(engine=attack, trust=attack, tokens=9, seconds_generating=1.0)
        run.log(grpo_step(0, 1, kind=attack, workers={attack: worker}))
        run.log(grpo_step(1, 1, kind=attack))
        run.event(attack, attack)  # read back as a kind of another version
        run.event("worker_lost", attack, worker=attack)
        raise ValueError(attack)
    page = Page(write_report(run.path))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == len(page.figures) + 2
    assert not {"img", "a"} & set(tags)
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    # title, heading, model, stage, reason, samples 4, comparison 4, events 3 + their count, config,
    # worker 3
    assert page.text.count(attack) >= 18
    assert not [text for text in page.scripts[:-2] if "</" in text]
    assert page.figures["worker-speed"]["data"][0]["name"] == html.escape(attack)
    lost = page.figures["states"]["data"][-1]  # plotly reads tags in what it shows
    assert (lost["y"], lost["text"]) == ([html.escape(attack)], [html.escape(attack)])


def test_terminal_escapes_and_control_characters_are_made_visible(
    make_run: MakeRun, make_group: Callable[..., Any]
) -> None:
    run = make_run()
    text = "\x1b[31mred\x1b[0m\x00\x07\x7f\x9b\r\u202eevil\u200b\ttab\nline"
    run.ledger.record(0, 1, [make_group("q", (text, 0.0))], [0])
    run.event("odd", text)
    page = Page(write_report(run.path))
    assert "␛[31mred␛[0m␀␇⟨U+007F⟩⟨U+009B⟩␍⟨U+202E⟩evil⟨U+200B⟩\ttab\nline" in page.text
    assert not [x for x in page.text if unicodedata.category(x) == "Cc" and x not in "\n\t"]


@given(st.dictionaries(st.text(), st.text()))
@example({"</script>": "<!-- <script> & \u2028\u2029"})
def test_json_reads_back_and_cannot_end_its_script(content: dict[str, str]) -> None:
    text = str(json_in_script(content))
    assert json.loads(text) == content
    assert not set("<>&\u2028\u2029") & set(text)


def test_a_long_answer_is_cut_and_says_so(
    make_run: MakeRun, make_group: Callable[..., Any]
) -> None:
    run = make_run()
    run.ledger.record(0, 1, [make_group("q", ("y" * 10_000, 0.0))], [0])
    page = Page(write_report(run.path))
    assert "y" * 4000 + "… (6,000 more characters)" in page.text


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_killed_early_gives_a_page(
    make_run: MakeRun, grpo_step: Callable[..., Any], steps: int
) -> None:
    run = make_run()
    for step in range(1, steps + 1):
        run.log(grpo_step(0, step))
    run.close()
    (run.path / "ledger.sqlite").unlink()
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"stage": 0, "st')
    page = Page(write_report(run.path))
    assert "interrupted" in page.text
    assert ("No steps yet" in page.text) == (steps == 0)
    assert len(page.figures) == (0 if steps == 0 else 8)


def test_a_file_that_ends_within_a_line_is_told_of(
    make_run: MakeRun, grpo_step: Callable[..., Any]
) -> None:
    run, text = make_run(), "ends within a line"
    run.log(grpo_step(0, 1))
    run.close()
    assert text not in Page(write_report(run.path)).text
    metrics = run.path / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-40])
    assert f"metrics.jsonl {text}" in Page(write_report(run.path)).text
    metrics.write_bytes(b"")
    assert text not in Page(write_report(run.path)).text


def test_an_sft_run_has_no_reward_plots(make_run: MakeRun) -> None:
    update = UpdateMetrics(loss=2.0, grad_norm=1.0, lr=1e-5, tokens=100)
    seconds = StepSeconds(update=1.5, step=2.0)
    with make_run({"name": "s", "model": {"path": "m"}, "stage": [{"kind": "sft"}]}) as run:
        for step in (1, 2):
            run.log(StepMetrics(stage=0, step=step, kind="sft", update=update, seconds=seconds))
    page = Page(write_report(run.path))
    assert list(page.figures) == ["loss", "gradient", "time", "speed"]
    assert "Accuracy" not in page.text


def test_only_so_many_events_are_listed_and_the_rest_counted(make_run: MakeRun) -> None:
    run = make_run()
    for index in range(103):
        run.event("verifier_error", f"number {index};")
    page = Page(write_report(run.path))
    assert "number 2;" not in page.text and "number 3;" in page.text
    assert "The last 100; 3 earlier ones" in page.text
    assert "events: verifier error 103" in " ".join(page.text.split())


def test_the_config_reads_back_as_toml() -> None:
    tree = to_tree(
        parse_recipe(
            {
                "model": {"path": 'a "quoted" \\ path'},
                "stage": [
                    {"kind": "sft", "data": "x", "steps": 1},
                    {"kind": "grpo", "task": {"name": "arithmetic"}, "steps": 2},
                ],
            }
        )
    )
    text = to_toml(tree)
    again = to_tree(parse_recipe(tomllib.loads(text)))
    assert again == tree
    assert "# chat_template is not set" in text


def test_where_the_report_goes(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    target = tmp_path / "new" / "page.html"
    assert write_report(run.path, target) == target
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert not (run.path / "report.html").exists()
    with pytest.raises(RunError, match="is a directory"):
        write_report(run.path, tmp_path)
    with pytest.raises(RunError, match="no run in"):
        write_report(tmp_path / "missing")
