"""Model directories made by somebody who means harm: our errors, at once, little memory."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from byte_model import make_model, write_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.errors import ModelError
from interlock.models import files
from interlock.models.checkpoint import load_decoder, save_model
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer

CPU = torch.device("cpu")
JSON_FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")
MOE = {
    "model_type": "qwen3_moe",
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "norm_topk_prob": True,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    write_tokenizer(directory)
    return make_model(directory)


def opened(directory: Path) -> None:
    Tokenizer.load(directory)
    load_decoder(directory, torch.float32, CPU)


def change(path: Path, **changes: object) -> None:
    tree = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(tree | changes))


@pytest.mark.parametrize(
    "name", [*JSON_FILES, "chat_template.jinja", "merges.txt", "model.safetensors"]
)
@pytest.mark.parametrize("target", ["secret.json", "/dev/zero", "loop"])
def test_a_link_out_of_the_model_is_refused(model: Path, name: str, target: str) -> None:
    (model.parent / "secret.json").write_text('{"password": "hunter2"}')
    (model / name).unlink(missing_ok=True)
    place = model / name if target == "loop" else (model.parent / target).resolve()
    (model / name).symlink_to(place)
    with pytest.raises(ModelError, match=r"leads out of the model|cannot read|no tokenizer\.json"):
        opened(model)


@pytest.mark.parametrize("name", ["merges.txt", "vocab.json", "added_tokens.json"])
def test_a_companion_that_leads_out_of_the_model_is_not_copied(model: Path, name: str) -> None:
    (model.parent / "secret").write_text("hunter2")
    (model / name).symlink_to(model.parent / "secret")
    out = model.parent / "weights"
    with pytest.raises(ModelError, match="leads out of the model directory"):
        save_model([], out, source=model, dtype=torch.float32)
    assert not (out / name).exists()


def test_the_links_of_the_hubs_cache_lead_to_its_blobs(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "models--org--name"
    (home / "blobs").mkdir(parents=True)
    (home / "snapshots" / "1").mkdir(parents=True)
    for path in model.iterdir():
        path.rename(home / "blobs" / path.name)
        (home / "snapshots" / "1" / path.name).symlink_to(f"../../blobs/{path.name}")
    opened(home / "snapshots" / "1")


@pytest.mark.parametrize("name", [*JSON_FILES, "model.safetensors.index.json"])
def test_json_without_end_is_refused(model: Path, name: str) -> None:
    if name.endswith("index.json"):
        (model / "model.safetensors").unlink()
    (model / name).write_text('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}")
    with pytest.raises(ModelError, match=f"cannot read .*{name}"):
        opened(model)


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_file_far_too_long_is_not_read_whole(model: Path, name: str) -> None:
    with open(model / name, "ab") as file:
        file.truncate(1 << 40)  # of zeros, which take no room on the disk
    with pytest.raises(ModelError, match=f"cannot read .*{name}: it is longer than 64 MB"):
        opened(model)


@pytest.mark.parametrize("key", ["eos_token", "chat_template", "added_tokens_decoder"])
def test_half_a_surrogate_pair_is_no_text(model: Path, key: str) -> None:
    pair = json.dumps({key: "\U0001f600"})  # two halves, which together are an emoji
    (model / "tokenizer_config.json").write_text(pair)
    assert files.read_object(model, "tokenizer_config.json") == {key: "\U0001f600"}
    (model / "tokenizer_config.json").write_text(pair.replace("\\ud83d", ""))
    with pytest.raises(
        ModelError, match=r"tokenizer_config\.json: .* surrogates not allowed; fetch"
    ):
        Tokenizer.load(model)


def test_a_name_that_no_file_has_is_told(model: Path) -> None:
    with pytest.raises(ModelError, match="embedded null byte; give"):
        Tokenizer.load(model, chat_template="a\0b")
    change(model / "tokenizer_config.json", eos_token="x\n" * 9999)
    with pytest.raises(ModelError, match="is not in the vocabulary") as refused:
        Tokenizer.load(model)
    assert len(str(refused.value)) < len(str(model)) + 300


def test_a_pipe_is_no_file(model: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")  # reading it would wait for ever
    with pytest.raises(ModelError, match=r"no .*config\.json"):
        read_architecture(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 512, "num_experts": 256}, "131072 experts are more than 32768"),
        ({"num_hidden_layers": 128, "num_experts": 256}, "asks for 98304 tensors of experts"),
        ({"num_hidden_layers": 4096, "num_experts": 2}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**30, "num_experts": 2}, "num_hidden_layers"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(
    model: Path, changes: dict[str, object], words: str
) -> None:
    change(model / "config.json", **MOE, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=words):
            load_decoder(model, torch.float32, CPU)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_json_is_a_model_or_a_model_error(model: Path, data: st.DataObject) -> None:
    """One key of one file at random; what is refused is refused in one line."""
    path = model / data.draw(st.sampled_from(JSON_FILES))
    whole = path.read_bytes() if path.exists() else None
    known = [*json.loads(whole or b"{}"), "eos_token_id", "rope_scaling", "added_tokens_decoder"]
    key = data.draw(st.sampled_from(known))
    change(path, **{key: data.draw(ANY)})
    try:
        opened(model)
    except ModelError as error:
        assert "\n" not in str(error)
    finally:
        if whole is None:
            path.unlink()
        else:
            path.write_bytes(whole)


SIZES = st.integers(0, 64) | st.integers(-2, 2**64)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "BOOL", "F8_E4M3", "X", ""]),
        "shape": st.lists(SIZES, max_size=4),
        "data_offsets": st.lists(SIZES, max_size=3),
    },
)
BYTES = st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_header_of_weights_is_right_or_a_model_error(model: Path, data: st.DataObject) -> None:
    """Its length, an entry (overlaps and other dtypes among them), or some of its bytes."""
    path = model / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    head, rest = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    spoiled = bytearray(whole)
    match data.draw(st.sampled_from(["length", "entry", "another's place", "bytes"])):
        case "length":
            spoiled[:8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
        case "bytes":
            for at, byte in data.draw(BYTES):
                spoiled[at % (8 + length)] = byte
        case kind:
            name, other = data.draw(st.lists(st.sampled_from(sorted(head)), min_size=2, max_size=2))
            head[name] |= data.draw(ENTRIES) if kind == "entry" else head[other]
            written = json.dumps(head).encode()
            spoiled[:] = len(written).to_bytes(8, "little") + written + rest
    path.write_bytes(spoiled)
    try:
        load_decoder(model, torch.float32, CPU)
    except ModelError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("spoil", [lambda b: b[:40], lambda b: b"\xff" * 64, lambda b: b""])
def test_damaged_files_are_ours(model: Path, spoil: Callable[[bytes], bytes]) -> None:
    for path in sorted(model.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(spoil(whole))
        with pytest.raises(ModelError, match=path.name):
            opened(model)
        path.write_bytes(whole)


def test_only_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    assert files.inside(tmp_path, "directory") is None
    assert files.inside(tmp_path, "absent") is None
