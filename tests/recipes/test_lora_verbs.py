"""What every other verb makes of a run that learned an adapter: eval, chat, serve, export."""

import io
import json
from pathlib import Path

import pytest
import torch
from byte_model import make_model
from chat_models import write_model
from chat_templates import CHATML
from peft import PeftModel
from safetensors.torch import load_file, save_file
from served import Served, settings
from tiny_recipe import write_tiny_recipe
from torch import Tensor
from transformers import AutoModelForCausalLM

from interlock.cli import main
from interlock.config.reading import load_recipe
from interlock.export import pretokenizers
from interlock.models.checkpoint import load_decoder
from interlock.models.fetch import find_model
from interlock.models.peft_files import save_adapter
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.train import train
from interlock.records.adapters import AdapterForm
from interlock.rundir import RunDir

MOVING = ["learner.lora.rank=4", "learner.lora.alpha=8", "stage.steps=3", "stage.eval.every=0"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer has merges, without which there is no GGUF file."""
    return make_model(write_model(tmp_path_factory.mktemp("models") / "small", CHATML))


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three steps so large that answers change."""
    place = tmp_path_factory.mktemp("lora")
    recipe = load_recipe(write_tiny_recipe(place, base), [*MOVING, "stage.optimizer.lr=0.05"])
    train(recipe, place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def merged(base: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with the run's adapter merged by peft: a model of which nothing is the run's own."""
    directory = tmp_path_factory.mktemp("merged")
    for path in base.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(run / "weights" / "adapter"))
    whole = adapted.merge_and_unload().state_dict()
    names = load_file(base / "model.safetensors")
    kept = {name: whole[name].contiguous() for name in names}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0
    return capsys.readouterr().out


def close(found: dict[str, Tensor], merged: Path) -> None:
    expected = load_file(merged / "model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)


def test_eval_measures_what_the_run_ended_with(
    run: Path, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = json.loads(said(capsys, "eval", run, "--json"))
    view = RunDir.read(run)
    last, task = view.metrics()[-1], view.config["stage"][0]["task"][0]
    assert (own["accuracy"], own["reward"]) == (last.accuracy, last.held_out_reward)
    options = [f"options.{name}={value}" for name, value in task["options"].items()]
    asked = ["--task", "jsonl", "--problems", 5, "--max-tokens", 12, "--json"]
    theirs = json.loads(said(capsys, "eval", merged, *asked, *options))
    again = json.loads(said(capsys, "eval", run, *asked, *options))
    assert again["reward"] == pytest.approx(theirs["reward"])


def test_chat_answers_by_the_merged_weights(
    base: Path,
    run: Path,
    merged: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def chat(model: Path) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("Say 3.\n"))
        return said(capsys, "chat", model, "--temperature", 0, "--max-tokens", 8)

    assert chat(run) == chat(merged) != chat(base)


@pytest.mark.slow
def test_serve_answers_by_the_merged_weights(run: Path, merged: Path, tmp_path: Path) -> None:
    toml = tmp_path / "serve.toml"
    toml.write_text(settings({"one": "float32"}))
    ids = Tokenizer.load(merged).chat([{"role": "user", "content": "Say 3."}])
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    drawn = model.generate(torch.tensor([ids]), max_new_tokens=8, min_new_tokens=8, do_sample=False)
    expected = model(drawn).logits[0, len(ids) - 1 : -1].log_softmax(-1).max(-1).values.tolist()
    served = Served(run, toml)
    try:
        with served.ready(1).client() as client:
            ask = {"model": "run", "prompt": ids, "max_tokens": 8, "temperature": 0, "logprobs": 1}
            told = client.post("/v1/completions", json=ask | {"ignore_eos": True})
    finally:
        served.close()
    answer = told.raise_for_status().json()
    found = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert found == pytest.approx(expected, abs=1e-4)


def test_export_writes_the_merged_weights(
    run: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "export", run, "--to", "hf", "--dtype", "float32", "--out", tmp_path / "hf")
    close(load_file(tmp_path / "hf" / "model.safetensors"), merged)
    assert not (tmp_path / "hf" / "adapter").exists()


def test_export_as_gguf_has_the_merged_weights(
    run: Path,
    merged: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = pretokenizers.digest(Tokenizer.load(run / "weights").framed)
    monkeypatch.setitem(pretokenizers.KNOWN, digest, "smollm")
    monkeypatch.setenv("INTERLOCK_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run.gguf"
    said(capsys, "export", run, "--to", "gguf", "--type", "F16", "--out", out)
    back = load_decoder(find_model(str(out)), torch.float32, torch.device("cpu")).tensors()
    own = load_file(merged / "model.safetensors")
    for name, tensor in own.items():
        torch.testing.assert_close(back[name], tensor, atol=1e-6, rtol=2**-10)  # of float16


def test_export_as_peft_is_what_peft_reads_and_names_no_place(
    base: Path, run: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapter"
    said(capsys, "export", run, "--to", "peft", "--out", out)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    close(PeftModel.from_pretrained(model, str(out)).merge_and_unload().state_dict(), merged)
    told = "".join((out / name).read_text() for name in ("adapter_config.json", "README.md"))
    assert '"base_model_name_or_path": "small"' in told and 'library_name: "peft"' in told
    assert str(base.parent) not in told


def test_an_adapter_of_fewer_layers_names_their_directory(base: Path, tmp_path: Path) -> None:
    text = write_tiny_recipe(tmp_path, base).read_text().replace("every = 4", "every = 0")
    (tmp_path / "few.toml").write_text(text.replace('"grpo"', '"grpo"\nevery_layer = 2'))
    train(load_recipe(tmp_path / "few.toml", MOVING[:3]), tmp_path / "run")
    told = (tmp_path / "run" / "weights" / "adapter" / "adapter_config.json").read_text()
    few = Path(json.loads(told)["base_model_name_or_path"])
    assert few.is_relative_to(tmp_path / "run") and len(load_file(few / "model.safetensors")) == 11
    model = AutoModelForCausalLM.from_pretrained(few, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(tmp_path / "run" / "weights" / "adapter"))
    close(adapted.merge_and_unload().state_dict(), tmp_path / "run" / "weights")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "run"), "--to", "peft", "--out", str(tmp_path / "out")])
    told = (tmp_path / "out" / "adapter_config.json").read_text()
    assert json.loads(told)["base_model_name_or_path"] == few.name


def test_a_base_of_the_hub_is_told_as_peft_has_it(tmp_path: Path) -> None:
    save_adapter({}, AdapterForm(4, 8.0), tmp_path, "hf:org/base@v1", "0" * 64)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["revision"]) == ("org/base", "v1")
    save_adapter({}, AdapterForm(4, 8.0), tmp_path, "some/where", "0" * 64)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["revision"]) == ("some/where", None)
