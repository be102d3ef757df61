"""`interlock export`: from what was asked for to what is written and where."""

from collections.abc import Callable
from pathlib import Path

from interlock.errors import ConfigError, ModelError
from interlock.export.card import Front, run_card
from interlock.export.push import check_name, push
from interlock.export.source import Source, find_source
from interlock.export.target import check_free

Tell = Callable[[str], None]


def export(
    model: str,
    form: str,
    out: Path | None,
    dtype: str | None,
    type_: str | None,
    repository: str | None,
    tell: Tell,
) -> Path:
    """Write a model in the `form` "hf" or "gguf", or a run's adapter as "peft". -> where it is

    Raises UserError with one line that says what to do.
    """
    given = {"--dtype": (dtype, "hf"), "--type": (type_, "gguf")}
    for option, (value, of) in given.items():
        if value is not None and form != of:
            raise ConfigError(f"{option} {value} says nothing of --to {form}; leave it out")
    if repository is not None:
        check_name(repository)
    source = find_source(model, tell)
    ending = {"hf": "", "gguf": f"-{type_ or 'BF16'}.gguf", "peft": "-adapter"}[form]
    target = out or Path("exports") / f"{source.name}{ending}"
    check_free(target, directory=form != "gguf")
    if form == "peft":
        from interlock.export.adapter import write_adapter

        write_adapter(source, target)
    elif form == "hf":
        from interlock.export.directory import write_directory

        write_directory(source, target, dtype or "bfloat16")
    else:
        _write_gguf(source, target, type_ or "BF16")
    if repository is not None:
        tell(f"pushed to {push(target, repository)}")
    return target


def _write_gguf(source: Source, target: Path, type_: str) -> None:
    try:
        from interlock.export.gguf_file import write_gguf
    except ImportError as error:
        raise ModelError(
            f"--to gguf needs the package {error.name!r}: pip install 'interlock[export]'"
        ) from None
    write_gguf(source, target, type_, _front(source))


def _front(source: Source) -> Front:
    """What the card says for machines: the model's own, or what a run's would be."""
    from interlock.export.metadata import check_card

    if source.run is not None:
        return run_card(source)[0]
    return check_card(source.directory)
