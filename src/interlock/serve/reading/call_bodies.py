"""One call as each form writes it, read character by character between its marks.

    HermesBody    {"name": "f", "arguments": {…}}
    DeepseekBody  function<｜tool▁sep｜>f, a ```json block   or   f<｜tool▁sep｜>{…}
    XmlBody       <function=f><parameter=x>1</parameter></function>

`name` is None until it is known. `arguments` are the pieces of their JSON so far; it only grows.
"""

# ruff: noqa: RUF002  DeepSeek spells its tokens with a fullwidth bar

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from interlock.serve.prompts.families import MARKS, ToolForm
from interlock.serve.prompts.turns import Tool
from interlock.serve.reading.json_reader import ObjectReader, Reading

_ARGUMENTS = {"arguments", "parameters"}
_LONGEST_HEAD = 1000  # characters of what stands around a name
_VALUE_END = "</parameter>"


class CallBody(Protocol):
    """A call that is being read, whatever its form."""

    name: str | None  # of the function, once it is known

    @property
    def arguments(self) -> list[str]:
        """Pieces of their JSON so far; it only grows."""

    @property
    def takes_marks(self) -> bool:
        """Whether a mark that comes now is text: it stands in a string."""

    def push(self, char: str) -> Reading:
        """Take the next character; none may follow DONE or BAD."""

    def mark(self, text: str) -> Reading:
        """Take a mark that stands in no string and ends no call."""


class HermesBody:
    """A JSON object with the name and the arguments, in either order, and any other members.

    Their JSON is told as it is written. BAD: a name that is no text or is missing, arguments that
    are no object, or arguments under both of their names.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments: list[str] = []
        self._reader = ObjectReader()

    @property
    def takes_marks(self) -> bool:
        return self._reader.in_string

    def push(self, char: str) -> Reading:
        reading, members = self._reader.push(char), self._reader.members
        if self.name is None and "name" in members and "name" in self._reader.complete:
            named = json.loads("".join(members["name"]))
            if not isinstance(named, str) or not named:
                return Reading.BAD
            self.name = named
        if not self.arguments and (found := _ARGUMENTS & members.keys()):
            if members[next(iter(found))][0] != "{":
                return Reading.BAD
            self.arguments = members[next(iter(found))]
        if members.keys() >= _ARGUMENTS or (reading is Reading.DONE and self.name is None):
            return Reading.BAD
        return reading

    def mark(self, text: str) -> Reading:
        return Reading.BAD


class DeepseekBody:
    """Both of DeepSeek's ways: what stands before the separator tells which it is.

    Their JSON is told as it is written. BAD: another mark than one separator, a head of more than
    _LONGEST_HEAD characters, or no name where the arguments begin.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._head: str | None = None  # before the separator, once that came
        self._text = ""
        self._reader: ObjectReader | None = None
        self.arguments: list[str] = []

    @property
    def takes_marks(self) -> bool:
        return self._reader is not None and self._reader.in_string

    def push(self, char: str) -> Reading:
        if self._reader is None and (self._head is None or char != "{"):
            self._text += char
            return Reading.MORE if len(self._text) < _LONGEST_HEAD else Reading.BAD
        if self._reader is None:
            self.name = self._named()
            if self.name is None:
                return Reading.BAD
            self._reader = ObjectReader()
        reading = self._reader.push(char)
        if reading is not Reading.BAD:
            self.arguments.append(char)
        return reading

    def mark(self, text: str) -> Reading:
        if text != MARKS[ToolForm.DEEPSEEK].separator or self._head is not None:
            return Reading.BAD
        self._head, self._text = self._text.strip(), ""
        return Reading.MORE

    def _named(self) -> str | None:
        """The name, once its arguments begin."""
        if self._head and not self._text.strip():
            return self._head
        found = re.fullmatch(r"\s*([^\s{}]+)\s*(?:```(?:json)?\s*)?", self._text)
        return found[1] if found and self._head == "function" else None


class XmlBody:
    """Tags with bare values, which are what the tool's schema says they are.

    A parameter is told as JSON once its end tag is there. BAD: any other tag, text between tags, or
    a parameter that comes twice.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        """`tools`: those of the request, for the types of their parameters."""
        self.name: str | None = None
        self.arguments: list[str] = []
        self._tools = {tool.name: tool.parameters or {} for tool in tools}
        self._key: str | None = None  # whose value is being read
        self._keys: set[str] = set()
        self._text: list[str] = []  # since the last tag

    @property
    def takes_marks(self) -> bool:
        return self._key is not None

    def push(self, char: str) -> Reading:
        self._text.append(char)
        if self._key is not None:
            if char == ">" and "".join(self._text[-len(_VALUE_END) :]) == _VALUE_END:
                self._ended(self._key, "".join(self._text[: -len(_VALUE_END)]))
            return Reading.MORE
        tag = "".join(self._text).lstrip()
        if char == ">":
            self._text = []
            return self._tag(tag)
        begun = ("<parameter=", "</function>") if self.name is not None else ("<function=",)
        fits = any(tag.startswith(each) or each.startswith(tag) for each in begun)
        short = len(self._text) < _LONGEST_HEAD and "\n" not in tag
        return Reading.MORE if fits and short else Reading.BAD

    def mark(self, text: str) -> Reading:
        return Reading.BAD

    def _tag(self, tag: str) -> Reading:
        found = re.fullmatch(r"<(function|parameter)=([^<>]+)>", tag)
        if self.name is None:
            if found is None or found[1] != "function":
                return Reading.BAD
            self.name = found[2].strip()
            return Reading.MORE
        if tag == "</function>":
            self.arguments.append("}" if self._keys else "{}")
            return Reading.DONE
        if found is None or found[1] != "parameter" or found[2] in self._keys:
            return Reading.BAD
        self._key = found[2]
        return Reading.MORE

    def _ended(self, key: str, value: str) -> None:
        value = value.removeprefix("\n").removesuffix("\n")
        schema = _object(_object(self._tools.get(self.name or "")).get("properties")).get(key)
        before = "{" if not self._keys else ", "
        written = json.dumps(_typed(value, _object(schema)), ensure_ascii=False)
        self.arguments.append(f"{before}{json.dumps(key, ensure_ascii=False)}: {written}")
        self._keys.add(key)
        self._key, self._text = None, []


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _typed(value: str, schema: Mapping[str, Any]) -> Any:
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    try:
        read = json.loads(value, parse_constant=lambda _: value)
    except (ValueError, RecursionError):
        return value
    if "string" in kinds:
        return None if read is None and "null" in kinds else value
    return read


def body_of(form: ToolForm, tools: Sequence[Tool]) -> CallBody:
    """A reader for the next call in this form; `tools` are those of the request."""
    match form:
        case ToolForm.HERMES:
            return HermesBody()
        case ToolForm.QWEN_XML:
            return XmlBody(tools)
    return DeepseekBody()
