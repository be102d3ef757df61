"""serve.toml: what it may say, and what is said of a slip."""

from pathlib import Path

import pytest

from interlock.config.reading import load_serving
from interlock.errors import ConfigError


def test_a_file_and_the_command_line_are_read_together(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('port = 9\n[[replica]]\ndevice = "cpu"\ncount = 2\n[limits]\nbody_mb = 1\n')
    settings = load_serving(path, ["replica.slots=3", "names=['a', 'b']"])
    assert (settings.port, settings.limits.body_mb, settings.names) == (9, 1, ["a", "b"])
    assert [(each.count, each.slots) for each in settings.replica] == [(2, 3)]
    assert settings.fleet.kind == "local"
    (replica,) = settings.replica
    assert (replica.patience, replica.prefill_chunk, replica.prefix_cache_mb) == (0, 256, 512)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("repica.device=x", "did you mean 'replica'?"),
        ("limits.body_mb=0", "limits.body_mb = 0: expected int >= 1"),
        ("port=65536", "port = 65536: expected int <= 65535"),
        ("fleet.kind=inline", 'fleet.kind = "inline": replicas are processes'),
        ("replica.sync_url=a", "replica.0.sync_url is a recipe's; remove it"),
        ("names=['']", "give names of 1 to 200 characters"),
        ("fleet.unit=4", "fleet.unit is for a run's generators; remove it"),
        ("fleet.qualify_s=5", "fleet.qualify_s is for a run's generators; remove it"),
        ("guard.min_tokens=5", "guard.min_tokens is for a run's generators; remove it"),
        ("replica.name=a/b", "replica.name = 'a/b' is to be a file name"),
        ('replica.python="a\\u0000b"', "replica.0.python holds a NUL"),
        ('chat_template="a\\u0000b"', "chat_template holds a NUL"),
        ("examine_s=0", "examine_s = 0: expected"),
        ("load_drain_s=never", "load_drain_s"),
        ("reference=npu", "reference = 'npu' is no replica; there are replica-0"),
        (
            "replica=[{engine='vllm', prefix_cache_mb=64}]",
            "replica.prefix_cache_mb = 64 is of the torch engine, and replica.engine is 'vllm', "
            "which decides that its own way; remove it, or set "
            "replica.options.enable_prefix_caching",
        ),
        (
            "replica=[{engine='vllm', prefill_chunk=0}]",
            "remove it, or set replica.options.max_num_batched_tokens",
        ),
        ("replica=[{engine='vllm', patience=8}]", "decides that its own way; remove it"),
        ("replica=[{engine='vllm', kernel='mkl'}]", "decides that its own way; remove it"),
        (
            'replica=[{name="a-0"},{name="a",count=2}]',
            "two [[replica]] tables have one name; give each its own",
        ),
    ],
)
def test_a_slip_is_told_in_one_line(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as told:
        load_serving(None, [override])
    assert said in str(told.value)


def test_what_the_defaults_of_a_replica_say_is_no_wish_of_a_vllm_replica() -> None:
    (replica,) = load_serving(None, ["replica=[{engine='vllm', patience=0}]"]).replica
    assert (replica.engine, replica.prefix_cache_mb) == ("vllm", 512)
