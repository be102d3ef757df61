"""Recipes: what they mean, and what is said of a wrong one."""

from datetime import datetime
from pathlib import Path

import pytest
from recipe_texts import BASE, load

from interlock.config.losses import LossSettings
from interlock.config.reading import load_recipe, parse_recipe, parse_task, to_tree
from interlock.config.rewards import AccuracyReward, OverlongReward
from interlock.config.secrets import shown_override
from interlock.config.stages import Grpo, Sft
from interlock.config.tasks import TaskSettings
from interlock.errors import ConfigError
from interlock.recipes import shipped
from interlock.records.rl import Sampling

SHIPPED = Path(shipped.__file__).parent

SECOND = """
[[stage]]
kind = "sft"
data = "rows.jsonl"
steps = 5
"""


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_survives_a_round_trip(path: Path) -> None:
    recipe = load_recipe(path)
    assert parse_recipe(to_tree(recipe)) == recipe


def test_defaults_and_kinds(tmp_path: Path) -> None:
    recipe = load(tmp_path, BASE + SECOND)
    grpo, sft = recipe.stage
    assert isinstance(grpo, Grpo) and isinstance(sft, Sft)
    assert (grpo.kind, sft.kind) == ("grpo", "sft")
    assert grpo.task[0].options == {"digits": 2}
    assert (grpo.completions, grpo.loss.tis_cap, grpo.optimizer.lr) == (8, 2.0, 1e-5)
    assert sft.task == []


def test_sets_are_repeated_where_there_are_any(tmp_path: Path) -> None:
    def replays(*overrides: str) -> bool:
        grpo = load(tmp_path, BASE, *overrides).stage[0]
        assert isinstance(grpo, Grpo)
        return "kept" in grpo.replays

    assert [replays(f"stage.sampling.{rule}") for rule in ("top_p=0.9", "top_k=512", "min_p=0.1")]
    assert not replays() and not replays("stage.sampling.top_k=513", "stage.replay=[]")
    assert replays("stage.sampling.top_p=0.9", "stage.replay=['kept']")


def test_overrides_reach_tables_lists_and_free_options(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        BASE + SECOND,
        "seed=7",
        "stage.0.optimizer.lr=3e-5",
        "stage.1.data=other.jsonl",
        "stage.0.task.options.operators=['+', '-']",
        "model.path='a b'",
    )
    grpo, sft = recipe.stage
    assert isinstance(grpo, Grpo) and isinstance(sft, Sft)
    assert (recipe.seed, grpo.optimizer.lr, sft.data) == (7, 3e-5, "other.jsonl")
    assert grpo.task[0].options == {"digits": 2, "operators": ["+", "-"]}
    assert recipe.model.path == "a b"


def test_a_clock_is_a_time_and_survives_the_record(tmp_path: Path) -> None:
    recipe = load(tmp_path, BASE, "model.clock=2026-11-28T12:00:00")
    assert recipe.model.clock == datetime(2026, 11, 28, 12)
    assert parse_recipe(to_tree(recipe)) == recipe


def test_the_default_generator_can_be_changed(tmp_path: Path) -> None:
    assert load(tmp_path, BASE, "generator.slots=7").generator[0].slots == 7


def test_an_evaluation_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stage\.1\.eval says how to evaluate, but on what"):
        load(tmp_path, BASE + SECOND, "stage.1.eval.every=2")
    with pytest.raises(ConfigError, match=r"stage\.1\.sampling says how to evaluate"):
        load(tmp_path, BASE + SECOND, "stage.1.sampling.max_tokens=9")


def test_long_answers_are_not_made_to_lose_twice() -> None:
    task = TaskSettings(name="arithmetic", reward=[AccuracyReward(), OverlongReward(zone=8)])
    sampling = Sampling(max_tokens=32)
    [found] = Grpo(
        steps=1, task=[task], sampling=sampling, loss=LossSettings(overlong_zone=8)
    ).conflicts()
    assert "'overlong' both take from long answers" in found
    assert list(Grpo(steps=1, task=[task], sampling=sampling).conflicts()) == []


def test_what_a_stage_is_asked(tmp_path: Path) -> None:
    grpo, sft = load(
        tmp_path, BASE + SECOND, "stage.0.updates_per_step=4", "stage.0.loss.kl_beta=0.1"
    ).stage
    assert (grpo.updates, grpo.generates, grpo.keeps_reference) == (3 * 4, True, True)
    assert (sft.updates, sft.generates, sft.keeps_reference) == (5, False, False)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [0, 0]),
        (["fleet.kind=local"], [2, 0]),
        (["fleet.kind=local", "stage.0.staleness=5"], [5, 0]),
        (["fleet.kind=local", "stage.0.staleness=0"], [0, 0]),
    ],
)
def test_how_far_behind_a_group_may_be(
    tmp_path: Path, overrides: list[str], expected: list[int]
) -> None:
    recipe = load(tmp_path, BASE + SECOND, *overrides)
    assert [recipe.staleness(stage) for stage in recipe.stage] == expected


def test_a_lone_stage_needs_no_index(tmp_path: Path) -> None:
    assert load(tmp_path, BASE, "stage.steps=9").stage[0].steps == 9


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stage.stepz=3", "unknown setting 'stage.0.stepz'; did you mean 'stage.steps'?"),
        ("stage.lr=1e-4", "unknown setting 'stage.0.lr'; did you mean 'stage.optimizer.lr'?"),
        ("lerner.dtype=float32", "unknown setting 'lerner'; did you mean 'learner'?"),
        ("stage.steps=abc", "stage.0.steps = 'abc': expected int, got str"),
        ("stage.steps=0", "stage.0.steps = 0: expected int >= 1"),
        ("stage.steps=true", "stage.0.steps = True: expected int, got bool"),
        ("stage.steps='3'", "stage.0.steps = '3': expected int, got str; write it without quotes"),
        ("stage.steps=1e2", "stage.0.steps = 100.0: expected int, got float; write 100"),
        ("generator.env.OMP_NUM_THREADS=2", """'generator.0.env.OMP_NUM_THREADS="…"'"""),
        ("model.lora_r=16", "unknown setting 'model.lora_r'; did you mean 'learner.lora'?"),
        ("model.r=16", "'model.r'; [model] has path, chat_template"),
        ("learner.lora.targets=q_proj", "choose one of all-linear, or a list of names"),
        ("learner.lora.rank=0", "learner.lora.rank = 0: expected int >= 1"),
        ('learner.lora={"targets"=[]}', "learner.lora.targets = [] leaves nothing to learn"),
        ("stage.optimizer.lr='1e-4'", "expected float, got str; write it without quotes"),
        ("learner.activation_checkpointing=yes", "got str; write true or false"),
        ("learner.activation_checkpointing=1", "got int; write true or false"),
        ("stage.sampling.stop=END", 'expected array, got str; write stop = ["END"]'),
        ("log=[wandb]", """got str; a shell takes quotes away, so write 'log=["wandb"]'"""),
        ("learner.lora.targets=[q_proj,v_proj]", """'learner.lora.targets=["q_proj", "v_proj"]'"""),
        ("stage.task.operators=['+']", "did you mean 'stage.task.options.operators'?"),
        ("stage.optimizer.weight_decay=1e9", "takes all of every weight away at a step"),
        ("zzz=1", "unknown setting 'zzz'; there are model, stage, name"),
        ("stage.task.held_out=10000000", "expected int <= 1000000"),
        ("name=a/b", "is to be the name of a directory"),
        ("generator.count=1000000000", "generator.0.count = 1000000000: expected int <= 4096"),
        ("stage.task.workers=1000000000", "task.workers = 1000000000: expected int <= 4096"),
        ("sync.url=memory://x", "sync.url = 'memory://x' is seen by one process alone"),
        ('prices=""', 'prices = "" names no file; remove it, or give one'),
        ('plan=""', 'plan = "" names no file; remove it, or give one'),
        ('model.chat_template=""', 'model.chat_template = "" names no file'),
        ('model.path="a\\u0000b"', "model.path holds a NUL"),
        ('sync.url="a\\u0000b"', "sync.url holds a NUL"),
        ('generator.python="a\\u0000b"', "generator.0.python holds a NUL"),
        ('generator.env={"A"="\\u0000"}', "generator.0.env.A holds a NUL"),
        ('generator.env={"A=B"="x"}', "generator.0.env has a name that"),
        ('generator.env={""="x"}', "generator.0.env has a name that"),
        (f"name={'x' * 300}", "at most 100 characters"),
        ("stage.optimizer.lr=nan", "stage.0.optimizer.lr = nan: expected float > 0.0"),
        ("stage.optimizer.lr=inf", "stage.0.optimizer.lr = inf: expected float <="),
        ("stage.optimizer.betas=[1.0,0.9]", "optimizer.betas.0 = 1.0: expected float < 1.0"),
        ("stage.optimizer.betas=[0.9,nan]", "optimizer.betas.1 = nan: expected float"),
        ("stage.optimizer.weight_decay=inf", "weight_decay = inf: expected float <= 1000000000.0"),
        ("stage.loss.kl_beta=inf", "kl_beta = inf: expected float <="),
        ("stage.loss.mask_low=inf", "mask_low = inf: expected float <="),
        ("stage.loss.tis_veto=-1", "tis_veto = -1: expected float >= 0"),
        ("learner.expert_bias_rate=inf", "expert_bias_rate = inf: expected float <="),
        (f"stage.steps={10**23 - 1}", f"stage.0.steps = {10**23 - 1}: expected int <= 1000000000"),
        ("stage.completions=100000", "stage.0.completions = 100000: expected int <= 65536"),
        ("generator.slots=1000000000", "expected int <= 65536"),
        (f"stage.sampling.max_tokens={10**23}", "expected int <= 1000000000"),
        (f"seed={2**63}", f"seed = {2**63}: expected int <= {2**63 - 1}"),
        (f"stage.task.seed={-(2**64)}", "stage.0.task.seed"),
        (f"stage.task.memory_mb={10**12}", "expected int <= 1000000000"),
        (f"stage.task.options.digits={10**23}", "options.digits = 1000"),
        ("stage.task.options.digits=[1,inf]", "task.options.digits.1 = inf: give a finite number"),
        ("stage.task.options.path=2026-11-28", "task.options.path = 2026-11-28: a date"),
        ("stage.sampling.stop=['']", "stage.0.sampling.stop.0 = '': expected str of length >= 1"),
        ("generator.resources={GPU=inf}", "expected float <="),
        ("learner.dtype=float16", 'learner.dtype = "float16" rounds the gradients'),
        ("model.clock=noon", "model.clock = 'noon'"),
        ("stage.kind=ppo", "stage.0.kind = 'ppo': the kinds of stage are grpo, sft, "),
        ("stage.task.reward=[{kind='rite'}]", "'rite': the kinds of reward are accuracy, format"),
        ("stage.task.reward=[{kind='accuracy',name='a/b'}]", "reward.0.name = 'a/b': expected str"),
        (
            "stage.task.reward=[{kind='overlong',zone=1000}]",
            "zone = 1000 is more than sampling",
        ),
        (
            "stage.task={name='jsonl',retries=9,judge={url='http://h/v1',model='m'}}",
            "task.retries is a verifier's, and task.judge scores in its stead; remove it, or",
        ),
        ("stage.task.template={day=2026-11-28}", "task.template.day = 2026-11-28: a date"),
        (
            "stage.task.judge={url='http://h/v1',model='m',body={p=nan}}",
            "task.judge.body.p = nan: give a finite number",
        ),
        ("stage.sampling.temperature=0", "GRPO needs a temperature above 0"),
        ("stage.replay=['kept']", "neither sampling.top_p, top_k nor min_p leaves anything out"),
        ("stage.sampling.top_k=513", "sampling.top_k = 513: no more than the 512 likeliest tokens"),
        ("stage.completions=1", "stage.0.completions = 1: expected int >= 2"),
        ("stage.eval.problems=1000", "more than task.held_out = 128"),
        ("stage.optimizer.warmup_steps=3", "leaves none of the 3 optimizer steps"),
        ("stage.updates_per_step=9", "an update needs a group"),
        ("learner.dtype=int8", "'int8': choose one of auto, bfloat16, float16, float32"),
        ("model.path.x=1", "model.path is not a table"),
        ("stage.1.steps=2", "give an index from 0 to 0"),
        ("stage.0=x", "cannot set stage.0: set one of its keys"),
        ("generator.dtype=int4", "generator.0.dtype = 'int4'"),
        ("steps", "write section.key=value"),
        ("=3", "write section.key=value"),
        ("stage.task.draw={column=''}", "task.draw.column = '': expected str of length >= 1"),
        ("stage.steps=\udcff", "stage.steps is given what is no UTF-8; write it in that"),
        (
            "stage.task.judge={url='http://[::1/v1',model='m'}",
            "task.judge.url = 'http://[::1/v1' is no address; give one such as",
        ),
        ("generator=[{device='cpu'},{device='npu'}]", "there are 2 generators"),
        ("generator.resources={GPU=1}", 'fleet.kind is "inline"'),
        ("fleet.address=head:6379", "is that of a Ray cluster"),
        ("generator.sync_url=http://x", "set that too"),
        ("sync.url=/store", 'set fleet.kind = "local"'),
        ("stage.staleness=1", "work while the learner does"),
        ("generator=[{engine='vllm',kernel='onednn'}]", "kernel = 'onednn' is of the torch engine"),
        (
            "generator=[{engine='vllm',graphs=true}]",
            "graphs = True is of the torch engine",
        ),
        (
            "generator=[{engine='vllm',fused_attention_above=64}]",
            "fused_attention_above = 64 is of the torch engine",
        ),
        ("learner.kernel=mkl", "choose one of auto, onednn, torch"),
        ('stage=[{kind="reject-sft",readable={script="latn"}}]', 'choose one of "", arabic, '),
        ("fleet.kind=slurm", "choose one of inline, local, ray"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, BASE, override)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the setting 'stage\.0\.steps' is missing"):
        load(tmp_path, BASE.replace("steps = 3", ""))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[model", "not valid TOML"),
        (b"\xff\xfe", "save it as UTF-8"),
        (None, "no recipe at"),
        (BASE.replace("[[stage]]", "[stage]").encode(), r"in two brackets: \[\[stage\]\]"),
        (BASE.replace("[model]", "[[model]]").encode(), r"in one bracket: \[model\]"),
    ],
)
def test_an_unreadable_recipe_is_named(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_recipe(path)
    assert "broken.toml" in str(caught.value)


def test_the_mark_that_editors_put_at_the_start_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert load_recipe(path).stage[0].steps == 3


def test_a_directory_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        load_recipe(tmp_path)


def test_a_lone_task_takes_the_same_overrides() -> None:
    task = parse_task("arithmetic", 64, ["options.digits=3", "system=Be brief."])
    assert (task.held_out, task.options, task.system) == (64, {"digits": 3}, "Be brief.")
    with pytest.raises(ConfigError, match="unknown setting 'digits'"):
        parse_task("arithmetic", 64, ["digits=3"])
    with pytest.raises(ConfigError, match=r"task arithmetic: task\.template\.day = 2026-11-28: a"):
        parse_task("arithmetic", 64, ["template={day=2026-11-28}"])
    with pytest.raises(ConfigError, match="2 are called 'format'"):
        parse_task("arithmetic", 64, ["reward=[{kind='format'},{kind='format'}]"])


def test_a_number_of_tokens_is_no_secret(tmp_path: Path) -> None:
    shown = {
        "budget.tokens=1e30": "budget.tokens=1e30",
        "sampling.max_tokens=1_000": "sampling.max_tokens=1_000",
        "log_token=12345678": "log_token=…",
        "generator.env.MAX_TOKENS=5": "generator.env.MAX_TOKENS=…",
        "auth_tokens=s3cr3t": "auth_tokens=…",
    }
    assert {given: shown_override(given) for given in shown} == shown
    with pytest.raises(ConfigError, match=r"budget\.tokens = -5: expected int"):
        load(tmp_path, BASE, "budget.tokens=-5")


@pytest.mark.parametrize(
    ("section", "override", "where"),
    [
        ("[[generator]]\nenv = { KEY = 31415926 }", None, "generator.0.env.KEY = …: expected str"),
        ('[[generator]]\nenv = { KEY = ["31415926"] }', None, "generator.0.env.KEY = …"),
        ('[[generator]]\nenv = "31415926"', None, "generator.0.env = …"),
        ("", "generator.env.KEY=31415926", """'generator.0.env.KEY="…"'"""),
        ("", "generator.env=31415926", "generator.0.env = …"),
        ("", "generator.env.A-B=31415926", "'generator.env.A-B=…'"),
        ("", "hf-token=31415926", "'hf-token=…'"),
    ],
)
def test_a_wrong_value_that_may_be_a_secret_is_not_shown(
    tmp_path: Path, section: str, override: str | None, where: str
) -> None:
    with pytest.raises(ConfigError) as wrong:
        load(tmp_path, BASE + section, *([override] if override else []))
    assert where in str(wrong.value) and "31415926" not in str(wrong.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("seed = " + "9" * 5000, "not valid TOML"),
        ('name = "a\\u001b[2J"\n' + BASE, "that print"),
        ('name = "a\\u202eb"\n' + BASE, "that print"),
    ],
    ids=["deep", "digits", "escape", "reordered"],
)
def test_a_hostile_recipe_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        load(tmp_path, text)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 600


def test_an_override_without_end_is_a_wrong_value(tmp_path: Path) -> None:
    for value in ("9" * 5000, "[" * 5000 + "]" * 5000):
        with pytest.raises(ConfigError, match=r"seed = .*expected int, got str"):
            load(tmp_path, BASE, f"seed={value}")


def test_rows_of_a_stage_find_room(tmp_path: Path) -> None:
    recipe = """
[model]
path = "m"
[[stage]]
kind = "reject-sft"
name = "kept"
rounds = 1
steps = 1
max_tokens = 4096
[stage.task]
name = "arithmetic"
[[stage]]
kind = "sft"
data = "stage:kept"
steps = 1
"""
    with pytest.raises(ConfigError, match=r"stage\.1\.max_tokens = 1024 is less than the 4096"):
        load(tmp_path, recipe)
    for mended in ("stage.1.max_tokens=4096", "stage.1.overlong=leave_out"):
        assert len(load(tmp_path, recipe, mended).stage) == 2


def test_an_adapter_learns_at_ten_times_the_rate_where_none_is_said(tmp_path: Path) -> None:
    text = 'model.path = "x"\n[[stage]]\nkind = "sft"\nsteps = 9\ndata = "y"\n'
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    rates = {
        settings: load_recipe(path, settings).stage[0].optimizer
        for settings in [
            (),
            ("learner.lora.rank=8",),
            ("learner.lora.rank=8", "stage.optimizer.lr=3e-5"),
            ("learner.lora.rank=8", "stage.optimizer.warmup_steps=2"),
        ]
    }
    assert [each and each.lr for each in rates.values()] == [1e-5, 1e-4, 3e-5, 1e-4]
    once = load_recipe(path, ["learner.lora.rank=8"])
    assert parse_recipe(to_tree(once)) == once


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("learner.mtp_weight = 0.1", "with learner.lora none of them changes; leave it at 0"),
        (
            "stage.from = 'hf:a/b'",
            "'hf:a/b' is other weights than those that the adapter of learner.lora is of",
        ),
    ],
)
def test_what_an_adapter_does_not_go_with(more: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('model.path = "x"\n[[stage]]\nkind = "sft"\nsteps = 9\ndata = "y"\n')
    with pytest.raises(ConfigError) as refused:
        load_recipe(path, ["learner.lora.rank=8", more.replace(" = ", "=")])
    assert told in str(refused.value)
