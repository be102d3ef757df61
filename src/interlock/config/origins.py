"""Where a stage's weights or rows come from, as `from` and `data` name it."""

MODEL = "model"  # what the first stage begins with
_OF_STAGE = "stage:"


def of_stage(origin: str) -> str | None:
    """The name of the earlier stage that is meant, of "stage:NAME"; None: of none."""
    return origin.removeprefix(_OF_STAGE) if origin.startswith(_OF_STAGE) else None
