"""By what a file of weights is told from another one: its content, or blocks all over it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

_BLOCK = 1 << 20  # bytes
_WHOLE = 1 << 10  # blocks of a file of weights that is read whole
_SAMPLED = 64  # blocks of a longer one: a step of training changes nearly every weight


def weights_digest(path: Path) -> str:
    """Of a file that may be longer than memory; of a very long one, its size and blocks of it."""
    size = path.stat().st_size
    blocks = -(-size // _BLOCK)
    places: Sequence[int] = range(blocks)
    if blocks > _WHOLE:  # the first has the header; the last may be a part of one
        places = [at * (blocks - 1) // (_SAMPLED - 1) for at in range(_SAMPLED)]
    digest = hashlib.sha256() if blocks <= _WHOLE else hashlib.sha256(f"{size} ".encode())
    with path.open("rb") as file:
        for place in places:
            file.seek(place * _BLOCK)
            digest.update(file.read(_BLOCK))
    return f"sha256 {digest.hexdigest()}" + (f" of {_SAMPLED} blocks" if blocks > _WHOLE else "")


def model_digest(directory: Path) -> str:
    """Of all weights in a directory, by name."""
    files = sorted(directory.glob("*.safetensors"))
    told = "\n".join(f"{file.name} {weights_digest(file)}" for file in files)
    return f"sha256 {hashlib.sha256(told.encode()).hexdigest()}"
