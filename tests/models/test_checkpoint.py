"""Loading, refusing and saving model directories; transformers is the other reader and writer."""

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from interlock.errors import ModelError
from interlock.models import checkpoint
from interlock.models.checkpoint import StoredWeights, load_decoder, save_model, stored_dtype
from interlock.sync import digest, tensor_digest

CPU = torch.device("cpu")
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"


def identity(tensors: dict[str, Tensor]) -> str:
    return digest({name: tensor_digest(tensor) for name, tensor in tensors.items()})


@pytest.fixture
def llama(reference: Callable[[str], PreTrainedModel], tmp_path: Path) -> Path:
    """An untied Llama in one file."""
    directory = tmp_path / "llama"
    reference("llama-llama3").save_pretrained(directory)
    return directory


@pytest.fixture
def sharded(llama: Path) -> Path:
    """The same in two files and an index."""
    tensors = load_file(llama / WHOLE)
    (llama / WHOLE).unlink()
    index = {}
    for number, name in enumerate(sorted(tensors)):
        file = f"model-0000{number % 2 + 1}-of-00002.safetensors"
        index[name] = file
    for file in set(index.values()):
        save_file({n: t for n, t in tensors.items() if index[n] == file}, llama / file)
    (llama / INDEX).write_text(json.dumps({"weight_map": index}))
    return llama


def load(directory: Path) -> dict[str, Tensor]:
    return load_decoder(directory, torch.float32, CPU).tensors()


def refusal(directory: Path) -> str:
    with pytest.raises(ModelError) as raised:
        load_decoder(directory, torch.float32, CPU)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Apply `change` to the tensors of the model's only file."""
    tensors = load_file(directory / WHOLE)
    change(tensors)
    save_file(tensors, directory / WHOLE)


def reindex(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Apply `change` to the weight_map of a model in several files."""
    tree = json.loads((directory / INDEX).read_text())
    change(tree["weight_map"])
    (directory / INDEX).write_text(json.dumps(tree))


def write_raw(path: Path, header: Any, data: bytes, length: int | None = None) -> None:
    """A safetensors file by hand; `length`: what it says of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def test_every_tensor_is_loaded_as_stored(
    saved: tuple[PreTrainedModel, Path],
    hub_names: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    model, directory = saved
    found, wanted = load(directory), hub_names(model.state_dict())
    if model.config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_every_parameter_is_filled(saved: tuple[PreTrainedModel, Path]) -> None:
    decoder = load_decoder(saved[1], torch.float32, CPU)
    for parameter in decoder.parameters():
        parameter.data.fill_(torch.nan)
    for tensor in decoder.tensors().values():
        tensor.zero_()
    for name, parameter in decoder.named_parameters():
        assert (parameter == 0).all(), name


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(
    llama: Path, value: float, dtype: torch.dtype
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors.update({each: tensor.to(dtype) for each, tensor in tensors.items()})
        tensors[name][-1, -1] = value

    rewrite(llama, spoil)
    wanted = f"{llama / WHOLE}: {name} holds values that are not finite; take an earlier checkpoint"
    assert refusal(llama).startswith(wanted)
    with pytest.raises(ModelError, match="not finite"):
        StoredWeights(llama).read(name)


@pytest.mark.parametrize(
    ("dtype", "most", "beyond"),
    [
        (torch.float16, 65519.0, 65520.0),  # the first that rounds to infinity
        (torch.bfloat16, 3.3961e38, 3.3963e38),
    ],
)
def test_weights_that_a_narrow_dtype_cannot_hold_are_refused(
    llama: Path, dtype: torch.dtype, most: float, beyond: float
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(llama, lambda tensors: tensors[name][-1, -1].fill_(-most))
    found = load_decoder(llama, dtype, CPU).tensors()[name][-1, -1]
    assert found == -torch.finfo(dtype).max
    rewrite(llama, lambda tensors: tensors[name][-1, -1].fill_(-beyond))
    load_decoder(llama, torch.float32, CPU)
    with pytest.raises(
        ModelError,
        match=f"{name} holds values that are not finite in {str(dtype)[6:]}; take another",
    ):
        load_decoder(llama, dtype, CPU)


def test_a_shard_that_is_not_finite_is_named(sharded: Path) -> None:
    tensors = load_file(sharded / SHARD)
    name = min(tensors)
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, sharded / SHARD)
    assert refusal(sharded).startswith(f"{sharded / SHARD}: {name} holds values that are not")


def test_parameters_are_cast_while_they_are_read(llama: Path) -> None:
    decoder = load_decoder(llama, torch.bfloat16, CPU)
    stored = load_file(llama / WHOLE)
    assert decoder.dtype == torch.bfloat16
    for name, tensor in decoder.tensors().items():
        assert torch.equal(tensor, stored[name].bfloat16()), name


def test_saved_models_are_the_same_to_transformers(
    saved: tuple[PreTrainedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = saved
    (source / "tokenizer.json").write_text("{}")
    # Several files, and so an index, for all but the smallest.
    monkeypatch.setattr(checkpoint, "_SHARD_BYTES", 60_000)
    target = tmp_path / "saved"
    decoder = load_decoder(source, torch.float32, CPU)
    save_model(decoder.published(torch.float32), target, source, torch.float32)
    again = AutoModelForCausalLM.from_pretrained(target)
    assert again.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert identity(load(target)) == identity(load(source))
    assert (target / "tokenizer.json").read_text() == "{}"
    files = sorted(path.name for path in target.glob("*.safetensors"))
    assert files[0].startswith("model-00001-of-") and len(files) == int(files[0][15:20])
    shards = [load_file(target / name) for name in files]
    assert all(sum(t.nbytes for t in shard.values()) <= 60_000 for shard in shards)


def test_saving_rounds_to_the_published_dtype(llama: Path, tmp_path: Path) -> None:
    tensors = load_decoder(llama, torch.float32, CPU).published(torch.bfloat16)
    save_model(tensors, tmp_path / "saved", llama, torch.bfloat16)
    stored, source = load_file(tmp_path / "saved" / WHOLE), load_file(llama / WHOLE)
    assert stored.keys() == source.keys()
    for name, tensor in source.items():
        assert torch.equal(stored[name], tensor.bfloat16()), name
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").dtype == torch.bfloat16


def test_the_dtype_of_a_model_is_what_its_config_says(tmp_path: Path) -> None:
    for config, dtype in (
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": "auto"}, None),
        ({}, None),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert stored_dtype(tmp_path) is dtype


def test_saving_does_not_name_code_that_is_not_there(llama: Path, tmp_path: Path) -> None:
    decoder = load_decoder(llama, torch.float32, CPU)
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "a.B"}}))
    save_model(decoder.published(torch.float32), tmp_path / "saved", llama, torch.float32)
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_several_files(sharded: Path) -> None:
    held = load_file(sharded / SHARD) | load_file(sharded / SHARD.replace("1-", "2-"))
    assert identity(load(sharded)) == identity(held)


def test_spare_tensors_are_no_error(
    reference: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    model = reference("llama")
    model.save_pretrained(tmp_path / "llama")
    before = identity(load(tmp_path / "llama"))
    table = "model.layers.0.self_attn.rotary_emb.inv_freq"
    spare = {table: torch.ones(4), "lm_head.weight": model.get_input_embeddings().weight.clone()}
    rewrite(tmp_path / "llama", lambda tensors: tensors.update(spare))
    assert identity(load(tmp_path / "llama")) == before
    reference("deepseek-v3").save_pretrained(tmp_path / "v3")
    rewrite(tmp_path / "v3", lambda t: t.update({"model.layers.3.eh_proj.weight": torch.ones(2)}))
    assert len(load(tmp_path / "v3"))
    rewrite(tmp_path / "v3", lambda t: t.update({"model.layers.4.eh_proj.weight": torch.ones(2)}))
    assert "model.layers.4.eh_proj.weight has no place" in refusal(tmp_path / "v3")


def test_a_tied_model_with_another_head_is_refused(
    reference: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    reference("llama").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.ones(67, 32)}))
    assert "lm_head.weight differs from the embedding" in refusal(tmp_path)


def test_missing_and_unknown_tensors(llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    message = refusal(llama)
    assert "lacks 1 of 30 tensors" in message and "model.layers.1.mlp.up_proj.weight" in message
    rewrite(llama, lambda tensors: tensors.update({"model.extra": torch.ones(1)}))
    assert "model.extra has no place" in refusal(llama)


def test_wrong_shapes_and_dtypes_are_found_before_memory_is_taken(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(checkpoint, "_allocate")
    norm = "model.norm.weight"
    rewrite(llama, lambda tensors: tensors.update({norm: torch.ones(33)}))
    assert f"{norm} has shape [33], where config.json asks for [32]" in refusal(llama)
    rewrite(llama, lambda tensors: tensors.update({norm: torch.ones(32, dtype=torch.int8)}))
    assert f"{norm} is stored as I8" in refusal(llama)


def test_truncated_files(llama: Path) -> None:
    data = (llama / WHOLE).read_bytes()
    for size in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        (llama / WHOLE).write_bytes(data[:size])
        assert f"{WHOLE} cannot be read" in refusal(llama)
    (llama / WHOLE).write_bytes(data + b"\0")
    assert f"{WHOLE} cannot be read" in refusal(llama)


@pytest.mark.parametrize("length", [2**20, 2**40, 2**63, 2**64 - 1])
def test_header_longer_than_the_file(llama: Path, length: int) -> None:
    write_raw(llama / WHOLE, {}, b"", length)
    assert f"{WHOLE} cannot be read" in refusal(llama)


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_weights_that_may_not_be_read_are_not_fetched_again(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def absent(*_: object, **__: object) -> None:  # as safetensors has it
        raise FileNotFoundError(f"No such file or directory: {llama / WHOLE}")

    monkeypatch.setattr("interlock.models.stored.safe_open", absent)
    monkeypatch.setattr("interlock.models.stored.open_regular", refused)
    told = f"{llama / WHOLE} cannot be read (Permission denied); let this user read it"
    assert refusal(llama) == told


def test_a_pointer_of_git_lfs_is_told_with_its_remedy(llama: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (llama / WHOLE).write_text(pointer)
    with pytest.raises(ModelError, match=r"is a pointer of Git LFS.*; run git lfs pull there"):
        load_decoder(llama, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    "header",
    [
        {"model.norm.weight": entry(0, 128, [32]), "lm_head.weight": entry(64, 192, [32])},
        {"model.norm.weight": entry(0, 1024, [256])},
        {"model.norm.weight": entry(0, 64, [32])},
        {"model.norm.weight": entry(128, 0, [32])},
        {"model.norm.weight": entry(-128, 0, [32])},
        {"model.norm.weight": entry(0, 256, [2**62, 2**62])},
        {"model.norm.weight": entry(0, 256, [64], "F999")},
        {"model.norm.weight": 7},
        [],
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=[
        "overlap", "beyond", "too-short", "backwards", "negative", "overflow", "dtype",
        "no-entry", "list", "no-json", "no-text", "deep",
    ],
)  # fmt: skip
def test_lying_headers(llama: Path, header: Any) -> None:
    write_raw(llama / WHOLE, header, b"\0" * 256)
    assert f"{WHOLE} cannot be read" in refusal(llama)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_not_opened(llama: Path, name: str) -> None:
    (llama / WHOLE).rename(llama / name)
    assert f"only pickled weights ({name})" in refusal(llama)


def test_no_weights_at_all(llama: Path) -> None:
    (llama / WHOLE).unlink()
    assert "has no model.safetensors" in refusal(llama)
    assert "give a Hugging Face model directory" in refusal(llama / "absent")


@pytest.mark.parametrize("name", ["../{}", "/{}", "sub/{}", "..", "", "{}.bin"])
def test_shards_must_stand_beside_the_index(sharded: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(sharded / SHARD, tmp_path / SHARD)
    outside = name.format(str(tmp_path / SHARD)[1:] if name.startswith("/") else SHARD)

    def move(index: dict[str, str]) -> None:
        index.update({key: outside for key, file in index.items() if file == SHARD})

    reindex(sharded, move)
    assert "is not the name of a safetensors file" in refusal(sharded)


@pytest.mark.parametrize("weights", ["llama", "sharded"])
def test_links_must_stay_inside(
    weights: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    directory = request.getfixturevalue(weights)
    file = next(directory.glob("*.safetensors"))
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert "leads out of the model directory" in refusal(directory)
    file.unlink()
    (tmp_path / "elsewhere").rename(directory / "kept")
    file.symlink_to("kept")
    assert load(directory)


def test_the_hub_cache_may_link_to_its_blobs(llama: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(llama.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(os.path.join("..", "..", "blobs", str(number)))
    assert load(snapshot)
    (tmp_path / "models--org--other").mkdir()
    target = os.readlink(snapshot / WHOLE)
    (snapshot / target).rename(tmp_path / "models--org--other" / "blob")
    (snapshot / WHOLE).unlink()
    (snapshot / WHOLE).symlink_to("../../../models--org--other/blob")
    assert "leads out of the model directory" in refusal(snapshot)


def test_index_and_shards_must_agree(sharded: Path) -> None:
    other = SHARD.replace("1-", "2-")
    tensors = load_file(sharded / SHARD)
    name, tensor = next(iter(tensors.items()))
    save_file(load_file(sharded / other) | {name: tensor}, sharded / other)
    assert f"{name}, but {INDEX} does not place it there" in refusal(sharded)
    reindex(sharded, lambda index: index.update({name: other}))
    assert f"{name}, but {INDEX} does not place it there" in refusal(sharded)
    del tensors[name]
    save_file(tensors, sharded / SHARD)
    assert load(sharded)
    reindex(sharded, lambda index: index.update({"model.more": SHARD}))
    assert f"{SHARD} lacks model.more" in refusal(sharded)
    (sharded / SHARD).unlink()
    assert f"has no file {SHARD}, which {INDEX} names" in refusal(sharded)
    os.mkfifo(sharded / SHARD)  # to open it would be to wait for ever
    assert f"has no file {SHARD}, which {INDEX} names" in refusal(sharded)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\0b", "embedded null byte"),
        ("a\ud800", "surrogates not allowed"),
        ("a\nb", "no file a b"),
    ],
)
def test_names_that_no_file_has(sharded: Path, name: str, told: str) -> None:
    reindex(sharded, lambda index: index.update({"more": f"{name}.safetensors"}))
    assert told in refusal(sharded)


@pytest.mark.parametrize(
    "name", ["a\nb", "\x1b[31m", "a" * 100_000], ids=["two lines", "escape", "long"]
)
def test_names_of_tensors_are_told_in_one_short_line(llama: Path, name: str) -> None:
    rewrite(llama, lambda tensors: tensors.update({name: torch.ones(1)}))
    told = refusal(llama)
    assert len(told) < len(str(llama)) + 400 and "\x1b" not in told


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}']
)
def test_damaged_index(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    assert INDEX in refusal(sharded)
