"""A model as one GGUF file, for llama.cpp and all that is built on it.

    Source ──> header, metadata, vocabulary, list of tensors ──> NAME.gguf
           └── tensor by tensor: float32 ── gguf.quants ───────────^

F16, BF16 and Q8_0 files hold what llama.cpp's own converter writes for the same directory. That has
no Q4_0; here its blocks are those of gguf.quants, and the embedding and the vocabulary projection
are Q8_0.
"""

from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.constants import MODEL_ARCH_NAMES
from gguf.gguf_writer import WriterState
from gguf.quants import quantize

from interlock.export.metadata import add_general, add_sizes, kind_of
from interlock.export.source import Source
from interlock.export.target import new_file
from interlock.export.tensors import Planned, plan, values
from interlock.export.vocabulary import add_vocabulary
from interlock.models.checkpoint import StoredWeights

TYPES = {
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "BF16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}


def write_gguf(source: Source, target: Path, type_: str, card: dict[str, Any]) -> None:
    """Write `target`, which must not exist. `card`: front matter of the model's card.

    Raises ModelError when the model cannot be one, RunError when the disk refuses.
    """
    stored_type, file_type = TYPES[type_]
    weights = StoredWeights(source.directory)
    kind = kind_of(weights.arch, source.directory)
    planned = plan(weights, kind, stored_type)
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[kind])
    for each in planned:
        float32 = np.dtype(np.float32)  # of no account beside raw_dtype
        writer.add_tensor_info(each.name, each.shape, float32, each.nbytes, raw_dtype=each.type)
    add_general(writer, source.directory, source.name, card)
    add_sizes(writer, weights.arch, source.directory, file_type)
    add_vocabulary(writer, source.directory, weights.arch)
    with new_file(target) as file:
        _write(writer, file, weights, planned)


def _write(
    writer: GGUFWriter, file: IO[bytes], weights: StoredWeights, planned: list[Planned]
) -> None:
    """The writer's own way to write a tensor loses what the disk said went wrong."""
    writer.fout, writer.state = [file], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(file, file.tell())
    for each in planned:
        data = quantize(np.ascontiguousarray(values(weights, each)), each.type)
        assert data.nbytes == each.nbytes, each
        file.write(np.ascontiguousarray(data).data.cast("B"))
        writer.write_padding(file, data.nbytes)
