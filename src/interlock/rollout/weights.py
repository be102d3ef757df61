"""What an engine asks of the weights it is given, before it touches its own."""

from collections.abc import Mapping

from torch import Tensor

from interlock.errors import ModelError

Shapes = dict[str, list[int]]  # of a model's tensors, by Hugging Face name


def check_weights(tensors: Mapping[str, Tensor], shapes: Shapes, version: int) -> None:
    """Raise ModelError unless `tensors` have these names and shapes."""
    if odd := sorted(shapes.keys() ^ tensors.keys()):
        state = "lack the" if odd[0] in shapes else "have an unknown"
        raise ModelError(
            f"the weights of version {version} {state} tensor {odd[0]!r} ({len(odd)} such "
            "names); publish them from the model that this engine was opened with"
        )
    for name, shape in shapes.items():
        if list(tensors[name].shape) != shape:
            raise ModelError(
                f"tensor {name!r} of version {version} has the shape "
                f"{list(tensors[name].shape)}, but the model's is {shape}; publish weights of the "
                "same model"
            )
