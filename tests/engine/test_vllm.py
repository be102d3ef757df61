"""vLLM against transformers on the same weights, and what it refuses.

What needs vLLM itself runs once, in its own environment (vllm_child.py), and is judged here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interlock.config.schema import GeneratorSettings
from interlock.engine.base import check_weights
from interlock.engine.vllm.engine import NO_VERSION, VllmEngine
from interlock.engine.vllm.options import check_options, settle
from interlock.engine.vllm.parameters import places
from interlock.engine.vllm.requests import noise_seed
from interlock.errors import ConfigError, ModelError
from interlock.models.checkpoint import load_decoder
from interlock.models.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
CHILD = Path(__file__).with_name("vllm_child.py")
SUPPORT = ROOT / "tests" / "support"
BAND = 1e-3  # nats, at float32; 2e-5 was seen


def test_parts_of_a_fused_parameter_are_its_rows_in_order() -> None:
    shapes = {
        "embed.weight": [10, 4],
        "layers.0.attn.q_proj.weight": [8, 4],
        "layers.0.attn.k_proj.weight": [2, 4],
        "layers.0.attn.v_proj.weight": [2, 4],
        "layers.0.attn.k_proj.bias": [2],
        "layers.0.attn.q_proj.bias": [8],
        "layers.0.attn.v_proj.bias": [2],
        "layers.0.norm.weight": [4],
    }
    parameters = {
        "embed.weight": [64, 4],  # padded
        "layers.0.attn.qkv_proj.weight": [12, 4],
        "layers.0.attn.qkv_proj.bias": [12],
        "layers.0.norm.weight": [4],
    }
    packed = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    weight, bias = "layers.0.attn.qkv_proj.weight", "layers.0.attn.qkv_proj.bias"
    assert places(shapes, parameters, packed) == {
        "embed.weight": ("embed.weight", 0, 10),
        "layers.0.attn.q_proj.weight": (weight, 0, 8),
        "layers.0.attn.k_proj.weight": (weight, 8, 10),
        "layers.0.attn.v_proj.weight": (weight, 10, 12),
        "layers.0.attn.k_proj.bias": (bias, 8, 10),
        "layers.0.attn.q_proj.bias": (bias, 0, 8),
        "layers.0.attn.v_proj.bias": (bias, 10, 12),
        "layers.0.norm.weight": ("layers.0.norm.weight", 0, 4),
    }
    assert places(shapes, parameters, {}) is None
    for odd in ([11, 4], [12, 5], [0]):  # sharded, of another width, packed away
        assert places(shapes, parameters | {weight: odd}, packed) is None


def test_every_completion_has_a_seed_of_its_own() -> None:
    keys = [(seed, name, number) for seed in (0, 1, 11) for name in "ab" for number in (0, 1, 11)]
    seeds = {noise_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert noise_seed(0, "a", 1) == noise_seed(0, "a", 1)


def test_tensors_must_be_the_models() -> None:
    shapes = {"a": [2, 3], "b": [3]}
    good = {"a": torch.zeros(2, 3), "b": torch.zeros(3)}
    check_weights(good, shapes, 4)
    with pytest.raises(ModelError, match=r"version 4 lack the tensor 'b'"):
        check_weights({"a": good["a"]}, shapes, 4)
    with pytest.raises(ModelError, match=r"version 4 have an unknown tensor 'c'"):
        check_weights(good | {"c": good["b"]}, shapes, 4)
    with pytest.raises(ModelError, match=r"'a' of version 4 has the shape \[3, 2\].*\[2, 3\]"):
        check_weights(good | {"a": torch.zeros(3, 2)}, shapes, 4)


def test_settings_that_vllm_lacks_are_named() -> None:
    known = {"model", "dtype", "enforce_eager"}
    check_options({"enforce_eager": True}, {"model": "m"}, known)
    with pytest.raises(ConfigError, match=r"'enforce_eagre'.*did you mean 'enforce_eager'"):
        check_options({"enforce_eagre": True}, {}, known)
    with pytest.raises(ConfigError, match=r"options\.dtype is not free"):
        check_options({"dtype": "half"}, {}, known)
    with pytest.raises(ConfigError, match=r"no setting 'logprobs_mode'; install"):
        check_options({}, {"logprobs_mode": "x"}, known)


def test_the_environment_is_set_up_but_not_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_CPU_KVCACHE_SPACE": "1"})
    assert settle(GeneratorSettings(device="cpu")) == "cpu"
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert os.environ["TORCHDYNAMO_DISABLE"] == "1"
    assert "VLLM_ASCEND_ENABLE_NZ" not in os.environ
    assert settle(GeneratorSettings(device="npu:0")) == "npu"
    assert os.environ["VLLM_ASCEND_ENABLE_NZ"] == "0"
    with pytest.raises(ConfigError, match=r"'cuda:1'.*CUDA_VISIBLE_DEVICES"):
        settle(GeneratorSettings(device="cuda:1"))


def test_without_vllm_the_remedy_is_named(smollm2: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from interlock.config.schema import GeneratorSettings
from interlock.engine.vllm.engine import VllmEngine
assert "vllm" not in sys.modules
sys.modules["vllm"] = None  # as if it were not installed
VllmEngine(Path({str(smollm2)!r}), GeneratorSettings(engine="vllm"), None)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith('interlock.errors.ConfigError: engine = "vllm" cannot be started here')
    assert "make vllm" in last


def test_a_model_in_fp8_is_refused(smollm2: Path, tmp_path: Path) -> None:
    form = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = json.loads((smollm2 / "config.json").read_text()) | {"quantization_config": form}
    (tmp_path / "config.json").write_text(json.dumps(config))
    vocabulary = Tokenizer.load(smollm2)
    with pytest.raises(ModelError, match=r"stored in fp8.*interlock export --to hf"):
        VllmEngine(tmp_path, GeneratorSettings(engine="vllm"), vocabulary)


@pytest.fixture(scope="module")
def work(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the child has left result.json, and the weights before and after version 7."""
    if not PYTHON.exists():
        pytest.skip("there is no .venv-vllm; `make vllm` builds it")
    folder = tmp_path_factory.mktemp("vllm")
    decoder = load_decoder(smollm2, torch.float32, torch.device("cpu"))
    noise = torch.Generator().manual_seed(0)
    tensors = {
        name: view.detach() * (1 + 0.02 * torch.randn(view.shape, generator=noise))
        for name, view in decoder.tensors().items()
    }
    name = "model.layers.3.mlp.up_proj.weight"
    rest = {each: tensor for each, tensor in tensors.items() if each != name}
    save_file(tensors, folder / "tensors-7.safetensors")
    save_file(rest, folder / "tensors-missing.safetensors")
    save_file(tensors | {"model.extra": torch.ones(1)}, folder / "tensors-unknown.safetensors")
    save_file(rest | {name: tensors[name][1:].clone()}, folder / "tensors-shape.safetensors")
    paths = [str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [PYTHON, CHILD, smollm2, folder, "float32"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def found(work: Path) -> dict[str, Any]:
    return json.loads((work / "result.json").read_text())


Judge = Callable[[list[int], list[int]], torch.Tensor]


def judge(smollm2: Path, weights: Path | None) -> Judge:
    """Transformers' logits [n, vocab] of n tokens behind a prompt."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    if weights is not None:
        model.load_state_dict(load_file(weights), strict=False)
        model.tie_weights()

    @torch.no_grad()
    def logits(prompt: list[int], tokens: list[int]) -> torch.Tensor:
        return model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]

    return logits


@pytest.fixture(scope="module")
def new(work: Path, smollm2: Path) -> Judge:
    """Of the weights that were loaded as versions 7 and 9."""
    return judge(smollm2, work / "tensors-7.safetensors")


def narrowed(logits: torch.Tensor) -> torch.Tensor:
    """As the second of the rules has them drawn from."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    for each in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.9)):
        logits = each(None, logits)
    return logits


def given(logits: torch.Tensor, tokens: list[int]) -> list[float]:
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Answers by name and number: the same tokens, and logprobs but for rounding.

    The tokens are compared exactly: logprobs differ by 3e-5, so about one seeded draw in 30,000 is
    on an edge that rounding reaches, and here are fewer than 300.
    """
    assert found.keys() == expected.keys()
    for name, answer in expected.items():
        assert found[name]["tokens"] == answer["tokens"], name
        assert found[name]["logprobs"] == pytest.approx(answer["logprobs"], abs=BAND)
        assert (found[name]["finish"], found[name]["text"]) == (answer["finish"], answer["text"])


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestTheEngine:
    def test_its_logprobs_are_transformers_on_the_loaded_weights(
        self, found: dict[str, Any], new: Judge
    ) -> None:
        groups = zip(found["prompts"], found["answers"], strict=True)
        for index, (prompt, group) in enumerate(groups):
            for answer in group:
                tokens = answer["tokens"]
                logits = new(prompt, tokens)
                if index % 3 == 1:
                    logits = narrowed(logits)
                if index % 3 == 2:
                    assert tokens == logits.argmax(-1).tolist()
                assert answer["logprobs"] == pytest.approx(given(logits, tokens), abs=BAND)
                assert answer["weight_version"] == 7
                assert len(tokens) == 12 or answer["finish"] == "stop"

    def test_bias_min_p_and_alternatives_are_what_they_say(
        self, found: dict[str, Any], new: Judge
    ) -> None:
        """min-p before top-p, as the torch engine has them: here the order makes a difference."""
        from transformers import MinPLogitsWarper, TopPLogitsWarper

        ruled = found["ruled"]
        logits = new(found["prompts"][0], ruled["tokens"])
        for token, value in ruled["bias"]:
            logits[:, token] += value
        logits /= 0.8
        other = MinPLogitsWarper(0.1)(None, TopPLogitsWarper(0.6)(None, logits))
        logits = TopPLogitsWarper(0.6)(None, MinPLogitsWarper(0.1)(None, logits))
        assert not other.isfinite().equal(logits.isfinite())
        assert ruled["logprobs"] == pytest.approx(given(logits, ruled["tokens"]), abs=BAND)
        for row, top in zip(logits.log_softmax(-1), ruled["top"], strict=True):
            best = row.topk(min(5, int(row.isfinite().sum())))
            assert [token for token, _ in top] == best.indices.tolist()
            assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=BAND)

    def test_a_greedy_answer_goes_on_behind_what_was_drawn(self, found: dict[str, Any]) -> None:
        same({"": found["further"]}, {"": found["whole"]})

    def test_prefill_scores_as_decode_did(self, found: dict[str, Any]) -> None:
        groups = zip(found["prompts"], found["answers"], found["scores"], strict=True)
        for index, (prompt, group, scores) in enumerate(groups):
            for answer, scored in zip(group, scores, strict=True):
                assert len(scored) == len(prompt) + len(answer["tokens"]) - 1
                if index % 3 != 1:  # temperature 1, or greedy, which is reported at 1
                    rest = scored[len(prompt) - 1 :]
                    assert answer["logprobs"] == pytest.approx(rest, abs=BAND)

    def test_it_holds_what_it_was_given(self, work: Path, smollm2: Path) -> None:
        own = load_decoder(smollm2, torch.float32, torch.device("cpu")).tensors()
        for version, given in ((0, own), (7, load_file(work / "tensors-7.safetensors"))):
            held = load_file(work / f"held-{version}.safetensors")
            assert held.keys() == given.keys()
            assert all(torch.equal(held[name], given[name]) for name in given)

    def test_noise_is_the_requests(self, found: dict[str, Any]) -> None:
        first, second = (answer["tokens"] for answer in found["answers"][0])
        assert first != second
        alone, among = found["alone"][0], found["answers"][4]
        assert [answer["tokens"] for answer in alone] == [answer["tokens"] for answer in among]
        for one, other in zip(alone, among, strict=True):
            assert one["logprobs"] == pytest.approx(other["logprobs"], abs=BAND)

    def test_many_long_prompts_at_once_are_as_one(self, found: dict[str, Any]) -> None:
        assert len(found["crowd"]) == 8
        (one,), first = found["one"], found["crowd"][0]
        assert first["tokens"] == one["tokens"]
        assert first["logprobs"] == pytest.approx(one["logprobs"], abs=BAND)

    def test_a_refused_version_changes_nothing(self, found: dict[str, Any]) -> None:
        refused = found["refused"]
        assert "lack the tensor 'model.layers.3.mlp.up_proj.weight'" in refused["missing"]
        assert "unknown tensor 'model.extra'" in refused["unknown"]
        assert "has the shape [1535, 576], but the model's is [1536, 576]" in refused["shape"]
        assert found["version_after_refusals"] == 7
        assert found["after_refusals"] == found["answers"]

    def test_older_weights_come_back_bit_for_bit(self, found: dict[str, Any]) -> None:
        assert found["own"] != found["answers"]
        for answers, version in ((found["own_again"], 9), (found["own"], 0)):
            for answer in (answer for group in answers for answer in group):
                assert answer.pop("segments") == [[len(answer["tokens"]), version]]
                assert answer.pop("weight_version") == version
        assert found["own_again"] == found["own"]

    def test_stop_strings_and_end_tokens(self, found: dict[str, Any]) -> None:
        greedy, stopped, stop = found["answers"][2][0], found["stopped"], found["stop"]
        assert stopped["finish"] == "stop"
        assert stopped["text"] == greedy["text"][: greedy["text"].index(stop)]
        count = len(stopped["tokens"])
        assert 1 < count < 12
        assert stopped["tokens"] == greedy["tokens"][:count]
        ended = found["ended"]
        assert ended["finish"] == "stop"
        until = greedy["tokens"].index(found["eos"]) + 1
        assert ended["tokens"] == greedy["tokens"][:until]

    def test_a_request_is_handed_over_when_it_is_done(self, found: dict[str, Any]) -> None:
        assert found["order"] == [1, 0]  # the short one came second
        assert found["interrupted"].startswith("InterlockError: stop at")
        assert found["after_interruption"] == found["alone"]

    def test_streams_that_join_and_leave_are_what_they_are_alone(
        self, found: dict[str, Any]
    ) -> None:
        assert {name.split("/")[0] for name in found["joined"]} == {"a", "bb", "ccc", "late"}
        same(found["joined"], found["joined_alone"])
        assert len(found["name_again"]) == 2  # under the name of the one that left

    def test_what_runs_goes_on_under_the_new_weights_alone(
        self, found: dict[str, Any], new: Judge
    ) -> None:
        """Up to the load, the tokens of the old weights; behind it, logprobs are those of the new
        weights on all that was before: no key or value of the old ones is left."""
        mixed = 0
        for name, answer in found["reloaded"].items():
            request, tokens = name.split("/")[0], answer["tokens"]
            if answer["segments"] == [[len(tokens), 9]]:  # waited for a slot until the load
                same({name: answer}, {name: found["new_alone"][name]})
                continue
            old = found["old_alone"][name]
            if answer["segments"] == [[len(tokens), 0]]:  # ended before
                same({name: answer}, {name: old})
                continue
            mixed += 1
            rest = len(tokens) - 5
            assert answer["segments"] == [[5, 0], [rest, 9]] and answer["weight_version"] == 0
            assert tokens[:5] == old["tokens"][:5]
            assert answer["logprobs"][:5] == pytest.approx(old["logprobs"][:5], abs=BAND)
            logits = new(found["reload_prompts"][request] + tokens[:5], tokens[5:])
            if request == "r1":
                logits = narrowed(logits)
            if request == "r2":
                assert tokens[5:] == logits.argmax(-1).tolist()
            assert answer["logprobs"][5:] == pytest.approx(given(logits, tokens[5:]), abs=BAND)
        assert mixed >= 6 and len(found["reloaded"]) == 10

    def test_a_load_at_the_same_place_gives_the_same_bits(self, found: dict[str, Any]) -> None:
        assert found["reloaded_again"] == found["reloaded"]

    def test_scores_name_the_most_likely_tokens_while_others_run(
        self, found: dict[str, Any], new: Judge
    ) -> None:
        text = found["text"]
        logprobs = new(text[:1], text[1:]).log_softmax(-1)
        assert found["given"] == pytest.approx(given(logprobs, text[1:]), abs=BAND)
        assert len(found["top"]) == len(text) - 1
        best = logprobs.topk(4)
        for place, top in enumerate(found["top"]):
            values = [value for _, value in top]
            assert values == pytest.approx(best.values[place, :3].tolist(), abs=BAND)
            if (best.values[place].diff() < -2 * BAND).all():  # no two that rounding may exchange
                assert [token for token, _ in top] == best.indices[place, :3].tolist()
        assert found["wide"] == [200] * (len(text) - 1)
        # 4 have ended and are untold, 4 run, 4 wait, of which the 2 of one request leave.
        assert found["pending"] == [12, True, 10]
        assert found["told"] == 8
        same(found["scored_while"], found["scored_alone"])

    def test_weights_that_are_not_finite_leave_an_empty_engine(self, found: dict[str, Any]) -> None:
        says, pending, step = found["not_finite"]
        assert says.startswith("TrainingError: the logits of weight version 10 are not finite")
        assert pending == 0 and step == []
        assert found["after_not_finite"] == found["before"]

    def test_torn_weights_draw_nothing(self, found: dict[str, Any]) -> None:
        says, version, pending, *refused = found["torn"]
        assert "weights that version 11 does not set, model.norm.weight first" in says
        assert (version, pending) == (NO_VERSION, 0)
        assert len(refused) == 2 and all("loaded half-way" in each for each in refused)
        assert found["after_torn"] == found["before"]

    def test_what_it_cannot_serve_it_says(self, found: dict[str, Any]) -> None:
        context, cold, score, unknown, fixed = found["unservable"]
        assert "more than the model's context of 8192" in context
        assert "sampling.temperature = 0.001" in cold
        assert "at most 8191" in score
        assert "'max_len'" in unknown and "did you mean 'max_model_len'" in unknown
        assert "generator.options.dtype" in fixed

    def test_it_says_what_it_is(self, found: dict[str, Any]) -> None:
        name, *rest = found["says"]
        assert name.startswith("vllm 0.")
        assert rest == ["cpu", "float32", 49152, 8192, 8]
