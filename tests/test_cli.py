"""The command line as a user meets it: what works, and what is said of every mistake."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from interlock.cli import main
from interlock.rundir import RunDir

DEADLINE = 240  # seconds


def interlock(
    *arguments: object, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "interlock.cli", *map(str, arguments)]
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=os.environ | environment,
    )


Complaint = Callable[..., str]


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Complaint:
    """What is said of a mistake: one line, exit code 2, nothing raised. In this process: a start of
    another costs seconds."""

    def of(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        said = capsys.readouterr().err
        assert ended.value.code == 2, said
        lines = said.splitlines()
        assert len(lines) == 1 and lines[0].startswith("interlock: "), said
        return lines[0]

    return of


def test_a_mistake_ends_the_command_with_one_line_and_no_traceback() -> None:
    done = interlock("chat", "no/such/model")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("interlock: ") and "no/such/model" in line


def test_a_slip_in_a_recipe_is_told_before_torch_is_imported() -> None:
    code = (
        "import sys; from interlock.cli import main\n"
        "try: main(['train', 'nowhere.toml'])\n"
        "except SystemExit as ended: print(ended.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 False\n", done.stderr


def test_nothing_in_a_message_acts_on_the_terminal(complaint: Complaint) -> None:
    assert "no recipe at ␛[2J⟨U+202E⟩.toml" in complaint("train", "\x1b[2J\u202e.toml")
    assert "no recipe at two lines.toml" in complaint("train", "two\nlines.toml")


@pytest.mark.parametrize(
    ("given", "taken"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_leave_the_cores_to_others(
    given: dict[str, str], taken: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is taken back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ.get("GOMP_SPINCOUNT") == taken


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "VERB"),
        (["dance"], "invalid choice: 'dance'"),
        (["train"], "RECIPE.toml"),
        (["train", "none.toml"], "no recipe at none.toml"),
        (["train", "none.toml", "--resume", "--fast"], "--fast is no option"),
        (["train", "none.toml", "--steps=3"], "without dashes: stage.steps=3"),
        (["train", "none.toml", "--lr", "1e-4"], "without dashes: stage.optimizer.lr=…"),
        (["serve", "x", "--deadline", "3"], "without dashes: limits.deadline_s=…"),
        (["serve", "x", "--count=-1"], "count = -1: expected int >= 1"),
        (["serve", "x", "--count", 'a"b'], "count = 'a\"b': expected int"),
        (["report", "x", "--fast"], "unrecognized arguments: --fast"),
        (["train", "x" * 300], "too long"),
        (["eval", "x" * 300, "--task", "arithmetic"], "too long"),
        (["eval", "x" * 300], "too long"),
        (["report", "x" * 300], "too long"),
        (["eval", "/nonsense"], "there is no run at '/nonsense'"),
        (["eval", "no/such/model", "--task", "arithmetic"], "no/such/model"),
        (["eval", "smollm2-135m-instruct", "--task", "sums"], "'sums'"),
        (
            ["eval", "smollm2-135m-instruct", "--task", "arithmetic", "digits=2"],
            "did you mean 'options.digits'?",
        ),
        (["eval", "x", "--task", "arithmetic", "--max-tokens", "0"], "'0' is no whole number"),
        (["eval", "smollm2-135m-instruct"], "for a model say --task"),
        (["eval", "x", "--task", "arithmetic", "--problems", "many"], "'many' is no whole number"),
        (["eval", "x", "--task", "arithmetic", "--problems", "0"], "--problems: '0' is no"),
        (["chat", "no/such/model"], "no/such/model"),
        (["chat", "x", "--temperature", "-1"], "temperature = -1.0"),
        (["report", "no-such-run"], "no run in no-such-run"),
        (["qualify", "--device", "warp"], "'warp' cannot be used here: torch knows no"),
        (["qualify", "--device", "sim:rust"], "defect 'rust' is not offered"),
        (["qualify", "--only", "fast"], "there is no check 'fast'"),
        (["bench", "--threads", "99999"], "--threads 99999: give at most "),
        (["migrate", "x", "--updates", "0"], "--updates: '0' is no whole number from 1 on"),
        (["migrate", "x", "--timeout", "nan"], "--timeout nan: give a number of seconds above 0"),
        (["qualify", "--soak", "0"], "--soak 0"),
        (
            ["qualify", "--device", "cpu", "--model", "/nowhere"],
            "no model and no run at '/nowhere'",
        ),
        (["qualify", "--seed", "-1"], "--seed: '-1' is no whole number"),
        (["qualify", "--device", "npu:0"], "it needs torch_npu, its vendor's plugin"),
        (["qualify", "--device", "cpu", "--out", "/dev/null/x"], "cannot make /dev/null/x"),
        (["doctor", "--device", "abacus"], "'abacus' is of no known kind; choose cpu, sim, "),
        (["parity", "x", "--b", "jax:cpu"], "jax"),
        (["parity", "x"], "--b"),
        (["parity", "x", "--b", "vllm:cpu"], "--b-python"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], expected: str, complaint: Complaint) -> None:
    assert expected in complaint(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["init", "--model", ""],
        ["tasks", ""],
        ["train", "recipe.toml", "--stage", ""],
        ["chat", "model", "--system", ""],
        ["serve", "model", "--host", ""],
        ["bench", "--device", ""],
        ["qualify", "--fleet", ""],
        ["parity", "model", "--b", "torch:cpu", "--b-model", ""],
        ["export", "model", "--to", "hf", "--push", ""],
        ["watch", "run", "--host", ""],  # would be every address of this machine
        ["label", "rows.jsonl", "--model", ""],
    ],
)
def test_what_is_given_empty_is_told_of_by_its_name(
    arguments: list[str], complaint: Complaint
) -> None:
    name = arguments[-2] if arguments[-2].startswith("-") else "NAME"
    told = f"argument {name}: '' names nothing; leave it out, or name something"
    assert told in complaint(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("qualify", "--device", "warp", "--only", "memory"),
        ("parity", "smollm2-135m-instruct", "--b", "torch:cpu", "--timeout", "0"),
    ],
)
def test_a_mistake_leaves_no_folder_for_results(
    arguments: tuple[str, ...], complaint: Complaint, tmp_path: Path
) -> None:
    complaint(*arguments, "--out", tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_doctor_says_what_is_here_and_ends_as_it_finds_it() -> None:
    done = interlock("doctor", "--device", "cpu", "--json", HF_TOKEN="hf_secret")
    found = json.loads(done.stdout)
    states = {line["topic"]: line["state"] for line in found["lines"]}
    assert states["torch"] == states["cpu"] == "ok" and found["device"] == "cpu"
    assert done.returncode == int("wrong" in states.values()) and done.stderr == ""
    assert "hf_secret" not in done.stdout
    lacking = interlock("doctor", "--device", "mlu:0", OMP_NUM_THREADS="100000")
    assert lacking.returncode == 1 and lacking.stderr == ""
    assert "✗ wrong    its plugin torch_mlu is not installed" in lacking.stdout
    assert "→ export OMP_NUM_THREADS=" in lacking.stdout


def test_doctor_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so: cannot open')")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = interlock("doctor", "--device", "cpu", PYTHONPATH=path)
    assert done.returncode == 1 and done.stderr == ""
    assert "torch is not installed" in done.stdout  # what lies there is no whole torch


def test_mistakes_in_a_recipe_leave_no_run_behind(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for override, expected in (
        ("stage.task.name=sums", "'sums'"),
        ("stage.task.options.path=none.jsonl", "none.jsonl"),
        ("stage.sampling.max_tokens=4000", "context of 256"),
        ("stage.task.options.verifier=none.py:f", "none.py"),
        ("model.path=no/such/model", "no/such/model"),
        ("learner.device=warp", "'warp'"),
        ("stage.eval.problems=9", "task.held_out = 8"),
        ("stage.problems_per_step=500", "problems_per_step"),
        ("prices=.", "prices .: Is a directory: '.'; give [[price]] tables"),
        ("plan=none.json", "plan none.json: No such file or directory: 'none.json'; give what"),
    ):
        with pytest.raises(SystemExit):
            main(["train", str(tiny_recipe), "--run", str(run), override])
        told = capsys.readouterr()
        assert expected in told.err and told.err.count("\n") == 1, override
        assert "run directory" not in told.out and not run.exists(), override


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_everything(encoding: str, tmp_path: Path) -> None:
    qualify = ("qualify", "--device", "cpu", "--quick", "--only", "versions", "--out", tmp_path)
    poor = {"PYTHONIOENCODING": encoding, "INTERLOCK_CERTIFICATES": str(tmp_path / "kept")}
    qualified = interlock(*qualify, **poor)
    assert (qualified.returncode, qualified.stderr) == (1, "")  # one check decides nothing
    assert "not decided" in qualified.stdout and (tmp_path / "report.html").is_file()
    for told in (("--help",), ("qualify", "--list")):
        assert interlock(*told, **poor).returncode == 0


def test_a_run_is_reported_though_nobody_reads_its_output(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "interlock.cli", "train", tiny_recipe, "--run", run]
    done = subprocess.run([*command, "stage.steps=2"], stdout=writer, stderr=subprocess.PIPE)
    assert (done.stderr, RunDir.read(run).status) == (b"", "finished")
    assert (run / "report.html").is_file()


def test_train_report_eval_chat_and_the_directory_rules(
    complaint: Complaint, tiny_recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained = interlock("train", tiny_recipe, "--run", run, "stage.steps=2", "checkpoint_every=1")
    assert trained.returncode == 0, trained.stderr
    assert "step 2/2" in trained.stdout and "after" in trained.stdout
    assert f"run directory: {run}\n" in trained.stdout
    assert (run / "report.html").is_file()
    view = RunDir.read(run)
    assert (view.status, [line.step for line in view.metrics()]) == ("finished", [0, 1, 2])

    again = ("train", tiny_recipe, "--run", run, "stage.steps=2", "checkpoint_every=1")
    assert "holds a run already" in complaint(*again)
    assert "seed = 0, not 5" in complaint(*again, "seed=5", "--resume")
    assert "--resume needs --run" in complaint("train", tiny_recipe, "--resume")
    assert "no run in" in complaint("train", tiny_recipe, "--run", tmp_path / "none", "--resume")

    longer = interlock(
        *again[:-2], "stage.steps=3", again[-1], "--resume", PYTHONIOENCODING="ascii"
    )
    assert longer.returncode == 0 and "step 3/3" in longer.stdout, longer.stderr
    view = RunDir.read(run)
    assert [line.step for line in view.metrics()] == [0, 1, 2, 3]

    out = tmp_path / "copy.html"
    assert interlock("report", run, "--out", out).stdout.strip() == str(out)
    assert out.is_file()

    options = ("--task", "arithmetic", "--problems", 4, "--max-tokens", 5)
    own = json.loads(interlock("eval", run, "--json").stdout)
    assert own["problems"] == view.config["stage"][0]["eval"]["problems"] < 8
    last = view.metrics()[-1]
    assert own["accuracy"] == pytest.approx(last.accuracy)
    assert own["reward"] == pytest.approx(last.held_out_reward)
    assert "held out 8; give --problems 8 or" in complaint("eval", run, "--problems", 9)
    assert "give --task too" in complaint("eval", run, "options.digits=1")
    measured = interlock("eval", run, *options, "--json", "options.digits=1")
    figures = json.loads(measured.stdout)
    assert (figures["problems"], figures["task"]["options"]) == (4, {"digits": 1})
    assert 0 <= figures["low"] <= figures["accuracy"] <= figures["high"] <= 1

    said = interlock("chat", run, "--max-tokens", 4, stdin="Hello\n\nAgain\n")
    assert said.returncode == 0, said.stderr
    assert said.stdout == interlock("chat", run, "--max-tokens", 4, stdin="Hello\nAgain\n").stdout


def test_a_file_in_place_of_the_run_directory(
    complaint: Complaint, tiny_recipe: Path, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("")
    assert str(path) in complaint("train", tiny_recipe, "--run", path)
