r"""Units in one way of writing: "square metres", "m^2", "sq. m" are one, and "$" and "dollars" are.

Only what has no other meaning is told to be the same. Nothing is converted: 5 m are not 500 cm.
"""

import re

_SAME = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gramme",
    "kg": "kilogram kilo kilogramme",
    "lb": "pound",
    "oz": "ounce",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "ms": "millisecond",
    "s": "second sec",
    "min": "minute",
    "h": "hour hr",
    "day": "d",
    "week": "wk",
    "year": "yr",
    "hz": "hertz",
    "j": "joule",
    "kj": "kilojoule",
    "w": "watt",
    "kw": "kilowatt",
    "n": "newton",
    "pa": "pascal",
    "dollar": "usd",
    "euro": "eur €",
    "£": "gbp",
    "cent": "¢",
    "¥": "yen jpy",  # the sign of yuan, too: with it they are yen
    "yuan": "cny rmb renminbi",
    "₹": "rupee inr",
    "%": "percent",
}
_ONE = {word: unit for unit, words in _SAME.items() for word in words.split()}
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_BEHIND = {"squared": "^2", "cubed": "^3"}
# "£" is not "pound", which may be a weight; the sign of dollars is TeX's, too.
MONEY = r"\\?\$|\\(?:euro|pounds)\b|[€£¥₹]"
_SIGNS = {"$": "dollar", "euro": "euro", "pounds": "£"}


def money(sign: str) -> str:
    """The unit of a currency's sign."""
    sign = sign.lstrip("\\")
    return canonical(_SIGNS.get(sign, sign))


def canonical(unit: str) -> str:
    """A unit as it is compared; "" of nothing."""
    said: list[str] = []
    power = ""
    plain = re.sub(r"[{}.]", "", unit.casefold())
    for word in re.findall(r"[^\W\d_]+|\^-?[0-9]+|[^\w\s]|_?[0-9]+", plain):
        if word in _POWERS:
            power = _POWERS[word]
        elif word in _BEHIND:
            said.append(_BEHIND[word])
        elif word == "per":
            said.append("/")
        elif word == "mph":
            said += ["mi", "/", "h"]
        else:
            said += [_named(word), power]
            power = ""
    return "".join(said)


def _named(word: str) -> str:
    if word in _ONE or word in _SAME:
        return _ONE.get(word, word)
    single = word.removesuffix("s")
    return _ONE.get(single, single)
