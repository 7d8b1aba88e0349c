"""The unit at the end of an answer.

Math-Verify drops units, so that 5 cm equals 5 m. Here two units that are known and differ make two
answers. A unit on one side only, or one that is not known, still counts for nothing.
"""

import re

_SPELLINGS = """
mm millimeter millimetre
cm centimeter centimetre
m meter metre
km kilometer kilometre
in inch inche
ft foot feet
yd yard
mi mile
mg milligram
g gram
kg kilogram
lb pound
oz ounce
ms millisecond
s sec second
min minute
h hr hour
day
week
month
year yr
ml milliliter millilitre
l liter litre
deg degree
rad radian
dollar
cent
mph
"""
_UNITS = {word: line.split()[0] for line in _SPELLINGS.split("\n") for word in line.split()}
_POWERS = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3, "cu.": 3}
_ENDING = re.compile(
    r"(?:\\(?:text|textrm|mathrm|mbox)\s*\{\s*([^{}]*?)\s*\}|(?<=[\d }])([a-zA-Z. ]+))"
    r"\s*(?:\^\{?(\d)\}?)?$"
)


def unit(answer: str) -> tuple[str, int] | None:
    """The unit that a normalised answer ends in, as (name, power). None: no unit that is known."""
    if not (ending := _ENDING.search(answer)):
        return None
    words = (ending[1] or ending[2] or "").lower().split()
    power = int(ending[3] or 1)
    if words and words[0] in _POWERS:
        power = _POWERS[words.pop(0)]
    if len(words) != 1:
        return None
    name = _UNITS.get(words[0]) or _UNITS.get(words[0].rstrip(".").removesuffix("s"))
    return (name, power) if name else None
