"""What is exported as GGUF loads as the model that it was, of every family that is exported."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from interlock.errors import ModelError
from interlock.export.gguf_file import write_gguf
from interlock.export.source import find_source
from interlock.models.attention import causal
from interlock.models.checkpoint import load_decoder
from interlock.models.fetch import find_model
from interlock.models.from_gguf.convert import gguf_to_hugging_face
from interlock.models.from_gguf.header import read_gguf
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer

Build = Callable[..., Path]
Known = Callable[[Path], Path]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERLOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def there_and_back(directory: Path, type_: str = "BF16") -> Path:
    target = directory.parent / f"{directory.name}.gguf"
    write_gguf(find_source(str(directory)), target, type_, {})
    return find_model(str(target))


def tensors(directory: Path) -> dict[str, Tensor]:
    return load_decoder(directory, torch.float32, CPU).tensors()


@pytest.mark.parametrize("family", ["llama", "llama-llama3", "qwen2", "qwen3", "qwen3-moe"])
@pytest.mark.parametrize("type_", ["BF16", "F16"])
def test_every_weight_and_every_size_comes_back(
    build: Build, known: Known, family: str, type_: str
) -> None:
    directory = known(build(family))
    back = there_and_back(directory, type_)
    given, found = tensors(directory), tensors(back)
    assert given.keys() == found.keys()
    for name, tensor in given.items():
        wanted = tensor.half().float() if type_ == "F16" and tensor.ndim > 1 else tensor
        if name.endswith("mlp.gate.weight"):  # a router stays float32
            wanted = tensor
        assert torch.equal(found[name], wanted), name
    assert read_architecture(back) == read_architecture(directory)


def test_a_quantised_file_gives_what_gguf_dequantises(build: Build, known: Known) -> None:
    directory = known(build("qwen3"))
    back = tensors(there_and_back(directory, "Q4_0"))
    reader = GGUFReader(directory.with_suffix(".gguf"))
    stored = {each.name: dequantize(each.data, each.tensor_type) for each in reader.tensors}
    for name, theirs in (("mlp.down_proj", "ffn_down"), ("self_attn.k_proj", "attn_k")):
        values = torch.from_numpy(stored[f"blk.1.{theirs}.weight"].copy()).bfloat16().float()
        assert torch.equal(back[f"model.layers.1.{name}.weight"], values)


def test_logits_of_a_quantised_llama_are_those_of_its_dequantised_weights(
    build: Build, known: Known
) -> None:
    """Near the original, and so in the right order: rows that stay permuted are far away."""
    directory = known(build("llama"))
    back, ids = there_and_back(directory, "Q8_0"), torch.arange(30)

    def logits(model: Path) -> Tensor:
        decoder, attend = load_decoder(model, torch.float32, CPU), causal(30, CPU)
        with torch.no_grad():
            return decoder.logits(decoder(ids, attend.positions, attend))

    exact = logits(directory)
    assert (logits(back) - exact).std() < 0.05 * exact.std()


def test_the_tokenizer_comes_back(build: Build, known: Known) -> None:
    directory = known(build("llama"))
    back = there_and_back(directory)
    ours, theirs = Tokenizer.load(back), Tokenizer.load(directory)
    texts = ["he said 1234", "<|im_start|>user\nhi<|im_end|>\n", "naïve 😀  two", ""]
    assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]
    assert ours.eos_ids == theirs.eos_ids and ours.template == theirs.template
    messages = [{"role": "user", "content": "What is 17 + 25?"}]
    assert ours.chat(messages) == theirs.chat(messages)


def test_a_file_is_converted_once(build: Build, known: Known, cache: Path) -> None:
    directory = known(build("llama"))
    write_gguf(find_source(str(directory)), directory.with_suffix(".gguf"), "BF16", {})
    told: list[str] = []
    found = find_model(str(directory.with_suffix(".gguf")), told.append)
    copy = directory.with_name("copy.gguf")
    copy.write_bytes(directory.with_suffix(".gguf").read_bytes())
    assert find_model(str(copy), told.append) == found
    assert len(told) == 1 and told[0].startswith("converting ")
    assert [each.name for each in (cache / "gguf").iterdir() if each.is_dir()] == [found.name]
    assert json.loads((found / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_is_refused_leaves_nothing(build: Build, known: Known, cache: Path) -> None:
    directory = known(build("llama"))
    path = directory.with_suffix(".gguf")
    write_gguf(find_source(str(directory)), path, "BF16", {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="does not lie in its data"):
        find_model(str(path))
    assert [each.name for each in (cache / "gguf").iterdir() if each.suffix != ".lock"] == []


def test_weights_that_are_not_finite_or_cannot_be_dequantised(
    build: Build, known: Known, cache: Path
) -> None:
    directory = known(build("llama"))
    path, name = directory.with_suffix(".gguf"), "blk.1.ffn_down.weight"
    write_gguf(find_source(str(directory)), path, "Q8_0", {})
    sound, start = path.read_bytes(), read_gguf(path).tensors[name].start
    path.write_bytes(sound[:start] + b"\xff\xff" + sound[start + 2 :])  # a scale: not a number
    with pytest.raises(ModelError, match=f"tensor {name} holds values that are not finite"):
        find_model(str(path))
    place = sound.index(name.encode()) + len(name) + 4 + 2 * 8
    path.write_bytes(sound[:place] + bytes([24]) + sound[place + 1 :])  # I8, a byte a weight
    with pytest.raises(ModelError, match=f"tensor {name} is stored as I8, which is not read"):
        find_model(str(path))
    assert [each.name for each in (cache / "gguf").iterdir() if each.suffix != ".lock"] == []


@given(st.data())
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_model_with_any_damage_is_refused_in_one_line_or_read(
    build: Build, known: Known, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "sound.gguf"
    if not path.exists():
        write_gguf(find_source(str(known(build("qwen3-moe")))), path, "BF16", {})
    content = bytearray(path.read_bytes())
    head = min(tensor.start for tensor in read_gguf(path).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, head - 8))
        bad = data.draw(st.sampled_from([b"\xff" * 8, bytes(8), b"\0\0\0\x40", b"\x01", b"\x7f"]))
        content[place : place + len(bad)] = bad
    (tmp_path / "damaged.gguf").write_bytes(content)
    (tmp_path / "made").mkdir(exist_ok=True)
    try:
        gguf_to_hugging_face(tmp_path / "damaged.gguf", tmp_path / "made")
    except ModelError as error:
        assert "\n" not in str(error)
