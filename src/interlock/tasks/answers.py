r"""Finding the final answer in the text of a completion. It judges nothing."""

import re
import unicodedata

# A sign counts unless it follows an operand: "= -5" is minus five, "12-5" ends in five.
_SIGN = r"(?:(?<![\w)\]}])[-\N{MINUS SIGN}])?"
_GAP = r"(?:\\[,;:!]|\{,\}|[,~\N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE} ])"
# "1,234", "1{,}234", "1\,234", "1 234": groups of three, and nothing before that is a digit too.
_GROUPED = rf"(?<![0-9.,])(?<![0-9][ ])[0-9]{{1,3}}(?:{_GAP}[0-9]{{3}})+(?![0-9])"
_DECIMALS = r"(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,4}(?!\w|\.[0-9]))?"
_MAGNITUDE = rf"(?:(?:{_GROUPED}|[0-9]+){_DECIMALS}|(?<![0-9.])(?=\.[0-9]){_DECIMALS})"
_NUMBER = re.compile(rf"(?P<sign>{_SIGN})[$€£]?(?P<size>{_MAGNITUDE})")
_PART = r"(?:\{[^{}]*\}|[0-9])"
_VALUE = re.compile(
    rf"""
    {_SIGN}[$€£]?(?:
        (?:[0-9]+\s*)?\\[dt]?frac\s*{_PART}\s*{_PART}
      | (?<![0-9][ ])[0-9]{{1,6}}[ ][0-9]{{1,3}}/[0-9]{{1,3}}(?![0-9])
      | (?:{_MAGNITUDE}\s*(?:\\times|\\cdot|[*×])\s*)?[0-9]+\s*\^\s*(?:\{{[^{{}}]*\}}|-?[0-9]+)
      | {_MAGNITUDE}\s*/\s*[0-9]+
      | {_MAGNITUDE}
    )
    """,
    re.VERBOSE,
)
# Between two numbers of which neither is chosen: "45 or 46", "**45**, or perhaps **46**".
_OR = re.compile(r"[\s*$)}\]?!,;\\]*\bor\b(?:\s+(?:maybe|perhaps|possibly))?[\s*$({\[\\]*")
# A list of candidates with nothing beside it, which ends the text.
_ONE = rf"[$*]*{_SIGN}[$€£]?{_MAGNITUDE}[$*]*"
_LIST = re.compile(
    rf"(?:\A|\n|\b(?:is|are|be|either):?|[:=])\s*(?P<values>{_ONE}(?:\s*(?:[,;|]|\band\b)"
    rf"+\s*{_ONE})+)[\s.!?]*\Z"
)
_LIST_REACH = 2000  # characters from the end
# What makes a number part of a formula: "12 + 34 or 46" says one thing twice.
_OPERATOR = re.compile(r"(?:[-+/^_×·÷\N{MINUS SIGN}]\s*|(?<!\*)\*\s*|\\[A-Za-z]+\s*|[\w.])\Z")
_WHOLE = re.compile(r"(?P<sign>-?)(?P<money>[$€£]?)(?P<digits>[0-9]{1,1000})")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3}")
_BOX = re.compile(r"\\boxed\s*\{")
_WIDE = {0xFF00 + code: 0x20 + code for code in range(1, 0x5F)}  # full-width ASCII
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
# Dashes that stand for a minus; an en dash also for "to" ("3–5"), so only where no operand is.
_DASH = re.compile(
    "[\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{SMALL HYPHEN-MINUS}]"
    r"|(?<![\w)\]}])(?<![0-9)\]}] )[\N{EN DASH}\N{FIGURE DASH}](?=\s?[0-9.$\\])"
)
# Signs in words: "negative 4", "minus $4$". Of "12 minus 5" and "x minus 5" it is no sign.
_SIGN_IN_WORDS = re.compile(
    r"(?P<operand>(?:[0-9)\]}]|\b[A-Za-z])[^\S\n]*)?(?<!\\)\b(?<!plus or )(?<!positive or )"
    r"(?P<sign>negative|minus)(?:[^\S\n]|~|\\[ ,;:])+(?P<open>\$|\\\$|[€£]|\\\(|\*\*|\\boxed\s*\{)?"
    r"(?=[0-9.]|\\[dt]?frac)",
    re.I,
)
_SIGN_AS_TEXT = re.compile(r"\\(?:text|mathrm)\s*\{\s*(negative|minus)\s*\}", re.I)
_APART = re.compile(r"(?<=[=({$])([^\S\n]*[-\N{MINUS SIGN}])[^\S\n]+(?=[$\\]?[0-9.])")
# As half of the world groups and points: "1.234.567,89", "1.000,50", "3{,}14". Of "1.234" and "0,5"
# nobody can tell: those stay a decimal and a list.
_POINTED = re.compile(
    r"(?<![0-9.,])([0-9]{1,3}(?:\.[0-9]{3}){2,}|[0-9]{1,3}(?:\.[0-9]{3})+(?=,[0-9]{1,2}(?![0-9,])))"
    r"(?:,([0-9]+))?(?![0-9]|[.,][0-9])"
)
_DECIMAL_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=(?:[0-9]{1,2}|[0-9]{4,})(?![0-9]))")
_TICK = re.compile("(?<=[0-9])[\N{RIGHT SINGLE QUOTATION MARK}_](?=[0-9]{3}(?![0-9]))")
_REPEATING = re.compile(
    r"(?<![0-9.])([0-9]{1,20})\.([0-9]{0,20}?)"
    r"(?:\\(?:overline|bar|dot)\s*(?:\{([0-9]{1,20})\}|([0-9]))"
    r"|([0-9]{1,6}?)\5{2,99}(?:\.{3}|…|\\[lc]?dots))"
)
_SUPERSCRIPT = re.compile("[⁻⁺]?[⁰¹²³⁴-⁹]+")
_LOWERED = str.maketrans("⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹", "-+0123456789")
_VULGAR = re.compile("[¼-¾⅐-⅞]")


def spelled(text: str) -> str:
    r"""With signs of typography, and of siunitx, in plain LaTeX: ½, 10², \nicefrac, \SI."""
    text = typed(text)
    text = _SUPERSCRIPT.sub(lambda found: f"^{{{found[0].translate(_LOWERED)}}}", text)
    text = _VULGAR.sub(lambda found: r"\frac{{{}}}{{{}}}".format(*_parts(found[0])), text)
    text = _DECIMAL_COMMA.sub(".", _TICK.sub("", text))
    text = _REPEATING.sub(_fraction, _POINTED.sub(_regrouped, text))
    text = re.sub(r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)", r"\\times ", text)
    text = re.sub(r"√\s*([0-9]+|[A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\(?:ang|num)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:SI|qty)\{([^{}]*)\}\{([^{}]*)\}", r"\1\\text{ \2}", text)
    text = re.sub(r"\\(?:nice|s|x)frac\b", r"\\frac", text)
    return text.replace("\N{FRACTION SLASH}", "/").replace("·", r"\cdot ")


def typed(text: str) -> str:
    """With digits and signs as on a keyboard: of full width, of other scripts, typographic, and
    "minus" and "negative" before a number.
    """
    text = _OTHER_DIGIT.sub(lambda found: str(unicodedata.digit(found[0])), text.translate(_WIDE))
    return _APART.sub(r"\1", _signed(_DASH.sub("-", text)))


def last_number(text: str) -> str | None:
    """The last number, as Python writes it: "-1234.5", "1e3".

    Understands thousands ("1,234", "1{,}234", "1\\,234", "1 234") and "$5".
    """
    found = numbers(text)
    return found[-1] if found else None


def numbers(text: str) -> list[str]:
    """Every number, in order, as `last_number` writes one."""
    return [
        ("-" if found["sign"] else "") + ungrouped(found["size"])
        for found in _NUMBER.finditer(text)
    ]


def last_value(text: str) -> str | None:
    r"""The last number, fraction or power; the whole formula ("$2\sqrt{3}$") when it is in one."""
    found = list(_VALUE.finditer(text))
    if not found:
        return None
    for formula in _FORMULA.finditer(text):
        inside = next(filter(None, formula.groups()), "")
        if formula.start() < found[-1].end() <= formula.end() and not _WORD.search(inside):
            return inside.strip()
    return found[-1][0].replace("\N{MINUS SIGN}", "-")


def undecided(text: str) -> bool:
    """Whether the text ends by naming several whole numbers, of which it chooses none ("45 or 46";
    "45, 46" where that is all it says, or follows "is", "are", ":" or "=").

    Formulas, fractions, decimals and numbers with units are not looked at: "12 + 34 or 46", "1/2 or
    0.5", "1 hour or 60 minutes" say one thing twice.
    """
    if (listed := _LIST.search(text, max(0, len(text) - _LIST_REACH))) and len(
        set(numbers(listed["values"]))
    ) > 1:
        return True
    found = list(_VALUE.finditer(text))[-2:]
    if len(found) < 2 or not _OR.fullmatch(text, found[0].end(), found[1].start()):
        return False
    if _OPERATOR.search(text[max(0, found[0].start() - 20) : found[0].start()]):
        return False
    plain = (ungrouped(each[0]).replace("\N{MINUS SIGN}", "-") for each in found)
    first, last = map(_WHOLE.fullmatch, plain)
    if first is None or last is None or first["money"] != last["money"]:
        return False
    return int(first["sign"] + first["digits"]) != int(last["sign"] + last["digits"])


def ungrouped(text: str) -> str:
    """Without what separates thousands."""
    return re.sub(_GROUPED, lambda found: re.sub(_GAP, "", found[0]), text)


def boxed(text: str) -> list[str]:
    r"""The contents of every closed \boxed{…}, in order."""
    return [
        text[start.end() : end].strip()
        for start in _BOX.finditer(text)
        if (end := _closing_brace(text, start.end())) is not None
    ]


def marked(text: str, marker: str) -> list[str]:
    """What follows each `marker`, up to the end of its line."""
    return [part.partition("\n")[0].strip() for part in text.split(marker)[1:]]


def _signed(text: str) -> str:
    """With signs for words."""

    def sign(found: re.Match[str]) -> str:
        operand, begun = found["operand"] or "", found["open"] or ""
        if operand and found["sign"].lower() == "minus":
            return f"{operand.rstrip()} - {begun}"
        return f"{operand}{begun}-"

    return _SIGN_IN_WORDS.sub(sign, _SIGN_AS_TEXT.sub(r" \1 ", text))


def _regrouped(found: re.Match[str]) -> str:
    return found[1].replace(".", "") + (f".{found[2]}" if found[2] else "")


def _fraction(found: re.Match[str]) -> str:
    """A decimal that repeats without an end, exactly: 0.1666… is 15/90."""
    block = found[3] or found[4] or found[5]
    before = found[1] + found[2]
    above, below = int(before + block) - int(before), (10 ** len(block) - 1) * 10 ** len(found[2])
    return f"\\frac{{{above}}}{{{below}}}"


def _parts(fraction: str) -> list[str]:
    return unicodedata.normalize("NFKC", fraction).split("\N{FRACTION SLASH}")


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return start + brace.start()
    return None
