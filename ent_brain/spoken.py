"""Spoken forms of written words: numbers, amounts, years, abbreviations."""

import re
from decimal import Decimal

from num2words import num2words

ENGLISH = {
    **{"&": "and", "+": "plus", "=": "equals", "@": "at"},
    **{"mr.": "mister", "mrs.": "missus", "dr.": "doctor", "st.": "saint", "mt.": "mount"},
    **{"mr": "mister", "mrs": "missus", "vs.": "versus", "etc.": "et cetera"},
}
"""Spoken forms of English words and signs, in lower case."""

UNITS = {"$": "dollars", "£": "pounds", "€": "euros", "%": "percent"}
"""Spoken forms of the signs before or after a number in English. They are said after it."""

NUMBER = re.compile(r"([$£€]?)(\d+(?:,\d{3})*(?:\.\d+)?)(st|nd|rd|th|s|%)?(?![\d])", re.IGNORECASE)

YEARS = range(1100, 2000)
"""Whole numbers without a comma that are read as years: 1984 is nineteen eighty-four."""


def spoken_form(word, language="en"):
    """Return the spoken form of a written word.

    Arguments
    ---------
    word : str
        A word without white space, in any case and with any punctuation.
    language : str
        Code of the language. Signs and abbreviations are supported for English only, numbers for
        the languages of num2words.

    Returns
    -------
    str
        One word or several, with white space around a former number. A word without a special form
        is returned unchanged.

    Example
    -------
    >>> [spoken_form(word) for word in ("Mr.", "$2.50", "1,200", "1984", "3rd", "1990s", "A4")]
    ['mister', 'two point five dollars', 'one thousand, two hundred', 'nineteen eighty-four', \
'third', 'nineteen nineties', 'A four']
    """
    if language == "en" and word.lower() in ENGLISH:
        return ENGLISH[word.lower()]
    if not any(map(str.isdigit, word)):
        return word
    try:
        spoken = NUMBER.sub(lambda match: f" {_say(*match.groups(), language)} ", word)
    except NotImplementedError:  # a language that num2words does not know
        return word
    return " ".join(spoken.split())


def _say(sign, digits, ending, language):
    number, ending = Decimal(digits.replace(",", "")), (ending or "").lower()
    is_english = language == "en"
    whole = number == number.to_integral_value()
    if ending in ("st", "nd", "rd", "th") and is_english and whole:
        return num2words(int(number), to="ordinal", lang=language)
    is_year = whole and number in YEARS and "," not in digits and not sign and ending != "%"
    kind = "year" if is_year and is_english else "cardinal"
    said = num2words(int(number) if whole else float(number), to=kind, lang=language)
    if ending == "s" and is_english:
        return f"{said[:-1]}ies" if said.endswith("y") else f"{said}s"
    unit = UNITS.get(sign or ending, "") if is_english else sign or ending
    return f"{said} {unit}".strip()
