"""`python -m interlock.cli`: the command in any environment."""

from interlock.cli import command

command()
