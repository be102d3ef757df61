"""The recipes that come with Interlock, one TOML file each."""

from pathlib import Path

DEMO = Path(__file__).with_name("demo.toml")
