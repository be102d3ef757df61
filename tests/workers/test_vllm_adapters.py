"""Adapters in vLLM's own slots, through the store into a real worker, against peft.

What needs vLLM itself runs once, in its own environment (vllm_adapters_child.py), and is judged
here. tests/engine/test_vllm_slots.py has what needs none.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from byte_model import make_model, write_tokenizer
from real_workers import CANARY
from torch import Tensor

from interlock.config.schema import GeneratorSettings
from interlock.models import adapters
from interlock.models.checkpoint import load_decoder
from interlock.models.peft_files import save_adapter
from interlock.records.adapters import Adapted, AdapterForm
from interlock.sync.store import Publisher
from interlock.workers.protocol import Load, Open

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
CHILD = Path(__file__).with_name("vllm_adapters_child.py")
SUPPORT = ROOT / "tests" / "support"
FORM = AdapterForm(rank=4, alpha=6.0)  # a scale that is no power of two
BAND = 1e-3  # nats, at float32
VERSIONS = (1, 2, 3)  # the last one is loaded under what runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: run `make vllm`"),
]


class _Versions:
    """Of an adapter of a model whose weights are other than its files'; heads are as wide as
    vLLM's CPU build has kernels for.
    """

    def __init__(self, work: Path) -> None:
        self.work, self.model, self.store = work, work / "model", str(work / "store")
        self.model.mkdir()
        write_tokenizer(self.model)
        make_model(
            self.model,
            architectures=["LlamaForCausalLM"],
            hidden_size=128,
            intermediate_size=192,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
        self.decoder = load_decoder(self.model, torch.float32, torch.device("cpu"))
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                parameter.mul_(1 + torch.randn(parameter.shape, generator=noise) * 0.1)
        self.base = {name: each.clone() for name, each in self.decoder.tensors().items()}
        publisher = Publisher(self.store, 5)
        beside = Adapted(FORM, publisher.of_base().publish(0, self.base).version)
        adapters.attach(self.decoder, FORM, torch.float32, seed=2)
        self.own: dict[int, dict[str, Tensor]] = {}
        self.loads: dict[int, Load] = {}
        for number in VERSIONS:
            for name, view in adapters.adapter_tensors(self.decoder).items():
                if number == 1 or "layers.1.mlp.down_proj.lora_B" in name:  # a delta: all are kept
                    view.copy_(torch.randn(view.shape, generator=noise) * 0.1)
            self.own[number] = adapters.published_adapter(self.decoder, torch.float32)
            written = publisher.publish(number, self.own[number], beside)
            self.loads[number] = Load(number, written.version.digest, id=number + 1)

    def told(self, *, across: bool, **settings: Any) -> dict[str, Any]:
        """What a worker with these settings said of the versions."""
        self._ask(across, GeneratorSettings(engine="vllm", slots=8, **settings))
        paths = [str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
        run = subprocess.run(
            [PYTHON, CHILD, self.work],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert run.returncode == 0, run.stderr[-4000:]
        told: dict[str, Any] = json.loads((self.work / "told.json").read_text())
        return told

    def _ask(self, across: bool, settings: GeneratorSettings) -> None:
        opening = Open("w", str(self.model), settings, None, self.store, CANARY, id=1, adapter=FORM)
        *first, last = (self.loads[number] for number in VERSIONS)
        asked = {"open": opening, "loads": first, "across": last if across else None}
        text = json.dumps(msgspec.to_builtins(asked))
        (self.work / "asked.json").write_text(text)

    def judge(self, number: int) -> Callable[[list[int]], Tensor]:
        """Peft's log-probabilities [n - 1] of a text's tokens but the first, by a version."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        directory = self.work / f"adapter-{number}"
        directory.mkdir(exist_ok=True)
        save_adapter(self.own[number], FORM, directory, "base", "")
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        model.load_state_dict(self.base, strict=False)
        adapted = PeftModel.from_pretrained(model, str(directory)).eval()

        @torch.no_grad()
        def logprobs(text: list[int]) -> Tensor:
            found = adapted(torch.tensor([text])).logits[0, :-1].log_softmax(-1)
            return found.gather(1, torch.tensor(text[1:])[:, None])[:, 0]

        return logprobs


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> _Versions:
    return _Versions(tmp_path_factory.mktemp("vllm-adapters"))


@pytest.fixture(scope="module")
def told(versions: _Versions) -> dict[str, Any]:
    return versions.told(across=True, dtype="float32")


def close(found: list[float], expected: Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found), expected, atol=BAND, rtol=0)


def test_each_version_is_proven_as_base_and_adapter_in_a_slot(
    versions: _Versions, told: dict[str, Any]
) -> None:
    assert told["engine"].startswith("vllm 0.")
    for number, found in zip(VERSIONS[:-1], told["loads"], strict=True):
        proof = found["told"]
        assert proof["number"] == number and proof["merged"] == ""
        assert proof["digest"] == versions.loads[number].digest
        close(proof["prefill"], torch.tensor(proof["decode"]))
        close(proof["text"], versions.judge(number)(CANARY.text))


def test_what_it_draws_and_scores_is_pefts(versions: _Versions, told: dict[str, Any]) -> None:
    for number, found in zip(VERSIONS[:-1], told["loads"], strict=True):
        judge = versions.judge(number)
        close(found["scored"], judge(list(range(60, 100))))
        for answer in found["drawn"]:
            ((version, tokens, logprobs),) = answer["segments"]
            assert version == number and len(tokens) == 12
            close(logprobs, judge([*answer["prompt"], *tokens])[-len(tokens) :])
    texts = [found["told"]["text"] for found in told["loads"]]
    assert max(abs(a - b) for a, b in zip(*texts, strict=True)) > 0.1  # they do differ


def test_what_runs_goes_on_with_the_next_adapter(versions: _Versions, told: dict[str, Any]) -> None:
    old, new = (versions.judge(number) for number in VERSIONS[1:])
    assert len(told["across"]) == 6
    for answer in told["across"]:
        (before, first, early), (after, rest, late) = answer["segments"]
        assert (before, after, len(first), len(rest)) == (*VERSIONS[1:], 5, 7)
        close(early, old([*answer["prompt"], *first])[-5:])
        close(late, new([*answer["prompt"], *first, *rest])[-7:])


def test_closed_slots_are_merged_and_proven_as_ever(versions: _Versions) -> None:
    told = versions.told(across=False, dtype="float32", options={"enable_lora": False})
    for number, found in zip(VERSIONS[:-1], told["loads"], strict=True):
        proof = found["told"]
        assert proof["merged"] == "generator.options.enable_lora is false"
        assert proof["digest"] == versions.loads[number].digest
        close(proof["text"], versions.judge(number)(CANARY.text))
