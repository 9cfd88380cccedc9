"""Spoken forms of written words: numbers, amounts, years, abbreviations."""

import re
from decimal import Decimal

from num2words import num2words

ENGLISH = {
    **{"&": "and", "+": "plus", "=": "equals", "@": "at"},
    **{"mr.": "mister", "mrs.": "missus", "dr.": "doctor", "st.": "saint", "mt.": "mount"},
    **{"mr": "mister", "mrs": "missus", "vs.": "versus", "etc.": "et cetera"},
}
"""Words and signs with a spoken form of their own, in small letters."""

UNITS = {"$": "dollars", "£": "pounds", "€": "euros", "%": "percent"}
"""Signs beside a number in English. They are said after it."""

NUMBER = re.compile(r"([$£€]?)(\d+(?:,\d{3})*(?:\.\d+)?)(st|nd|rd|th|s|%)?(?![\d])", re.IGNORECASE)

YEARS = range(1100, 2000)
"""Whole numbers without a comma that are said as years: 1984 is nineteen eighty-four."""


def spoken_form(word, language="en"):
    """Say how a written word is spoken.

    Arguments
    ---------
    word : str
        Without white space, with any case and punctuation.
    language : str
        Its code. Signs and abbreviations are known of English alone, numbers of the languages of
        num2words.

    Returns
    -------
    str
        One word or several, with white space around what was a number; the word itself if nothing
        of it is written in short.

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


def spell(text, tokens, language="en"):
    """Write a text in the tokens of a model, by its spoken form.

    Arguments
    ---------
    text : str
        With any case and punctuation. Characters that the tokens lack are left out.
    tokens : CharTokens, CharacterTokens or SentencePieceTokens
    language : str
        Its code.

    Returns
    -------
    (list[int], list[tuple])
        Token ids; and (word as written, first token, end) of each word. What has no spoken form,
        such as a dash, is joined to the word before it.

    Example
    -------
    >>> from ent_brain.tokens import CharTokens
    >>> spell("Tea \u2013 at 5!", CharTokens())[1]
    [('Tea \u2013', 0, 3), ('at', 4, 6), ('5!', 7, 11)]
    """
    ids, words, before = [], [], ""
    for word in text.split():
        spoken = tokens.normalize(spoken_form(word, language))
        lacking = dict.fromkeys(map(ord, tokens.unknown(spoken)))
        spoken = " ".join(spoken.translate(lacking).split())
        if any(map(str.isalnum, spoken)):
            if ids:
                ids += tokens.encode(" ")  # pieces have their boundary in them
            own = tokens.encode(spoken)
            parts = tokens.words(own)
            words.append((before + word, len(ids) + parts[0][1], len(ids) + parts[-1][2]))
            ids += own
            before = ""
        elif words:
            words[-1] = (f"{words[-1][0]} {word}", *words[-1][1:])
        else:
            before += f"{word} "
    return ids, words
