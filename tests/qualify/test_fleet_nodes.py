"""What may be said of hosts, and what becomes of it."""

import sys
from contextlib import closing
from pathlib import Path

import pytest

from interlock.cli import main
from interlock.errors import ConfigError
from interlock.qualify.fleet.nodes import Place, folder, places


def found(given: str, tmp_path: Path, **changes: object) -> list[Place]:
    asked: dict[str, object] = {"remote_shell": "sh -c", "python": None, "devices": []}
    fleet, all_of_it = places(given, tmp_path, **asked | changes)  # type: ignore[arg-type]
    with closing(fleet):
        return all_of_it


def test_names_on_the_command_line(tmp_path: Path) -> None:
    one, two = found("n1,root@10.0.0.2", tmp_path, python="~/venv/bin/python", devices=["cpu"])
    assert one.spec.reach == ["sh", "-c", "n1"] and one.spec.python == "~/venv/bin/python"
    assert (two.name, two.address, two.devices) == ("root@10.0.0.2", "10.0.0.2", ["cpu"])


def test_a_list_of_hosts(tmp_path: Path) -> None:
    file = tmp_path / "hosts.txt"
    file.write_text("# the first rack\nn1\n\nn2  # a comment\n")
    assert [place.name for place in found(str(file), tmp_path)] == ["n1", "n2"]


def test_a_file_says_more_of_each(tmp_path: Path) -> None:
    file = tmp_path / "hosts.toml"
    file.write_text(
        '[[host]]\nname = "n1"\naddress = "10.0.0.1"\ndevices = ["sim", "sim:crash,hang", "sim"]\n'
        'python = "/opt/python"\n[[host]]\nname = "n2"\n'
    )
    one, two = found(str(file), tmp_path, devices=["cpu"])
    assert (one.address, one.devices) == ("10.0.0.1", ["sim", "sim:crash,hang", "sim"])
    assert (one.spec.python, two.spec.python) == ("/opt/python", "python3")
    assert (two.address, two.devices) == ("n2", ["cpu"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("-oProxyCommand=touch x", "is no host"),
        ("n1,-oProxyCommand", "'-oProxyCommand' is no host"),
        ("root@-oProxyCommand", "is no host"),
        ("n1;reboot", "is no host"),
        ("n1 n2", "is no host"),
        ("$(reboot)", "is no host"),
        ("n1,", "'' is no host"),
        ("n1,n2,n1", "'n1' stands twice"),
        ("nowhere.toml", "no file of hosts at nowhere.toml"),
        ("../n1", "is no host"),
    ],
)
def test_a_name_that_a_shell_would_read_is_refused(
    given: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        found(given, tmp_path)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("python", ["-c", "a b", "$(reboot)", "py;thon", "'x'", ""])
def test_an_interpreter_is_one_plain_word(python: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts.toml"
    file.write_text(f'[[host]]\nname = "n1"\npython = "{python or " "}"\n')
    with pytest.raises(ConfigError, match="is no interpreter"):
        found(str(file), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[host]]\n", "name"),
        ('[[host]]\nname = "n1"\nport = 3\n', "port"),
        ("[[host]\n", "hosts.toml"),
        ("host = []\n", "names no host"),
        ('[[host]]\nname = "n1"\naddress = "-x"\n', "'-x' is no address"),
        ('[[host]]\nname = "n1"\ndevices = ["cuda:0", "cuda:0"]\n', "'cuda:0' stands twice"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        found(str(file), tmp_path)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("shell", ["", "no-such-shell -x", "ssh 'open"])
def test_a_remote_shell_must_be_there(shell: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--remote-shell"):
        found("n1", tmp_path, remote_shell=shell)


def test_every_name_has_a_folder_of_its_own() -> None:
    names = ["a-b", "a:b", "a%b", "a%3ab", "root@a", "a b", "a/b", "é"]
    assert len({folder(name) for name in names}) == len(names)
    assert all("/" not in folder(name) for name in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fleet", "-n1"], "expected one argument"),
        (["--fleet", "n1;n2", "--remote-shell", sys.executable], "'n1;n2' is no host"),
        (["--fleet", "n1", "--device", "cpu"], "give --devices"),
        (["--fleet", "n1", "--only", "speedy"], "there is no check 'speedy'"),
        (["--fleet", "n1", "--timeout", "0"], "'0' is no whole number from 1 on"),
        (["--fleet", "ray://nowhere:x"], "no Ray cluster at 'nowhere:x'"),
        (["--devices", "cpu"], "--devices is of a fleet; give --fleet too"),
        (["--remote-python", "p"], "--remote-python is of a fleet"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["qualify", *arguments])
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(said) == 1 and message in said[0]
    assert not (tmp_path / "certificates").exists()
