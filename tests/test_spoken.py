import pytest

from ent_brain.spoken import spoken_form


@pytest.mark.parametrize(
    ("word", "spoken"),
    [
        ("hello,", "hello,"),
        ("it's", "it's"),
        ("Dr.", "doctor"),
        ("&", "and"),
        ("25", "twenty-five"),
        ("(25)", "( twenty-five )"),
        ("10%", "ten percent"),
        ("£3", "three pounds"),
        ("21st", "twenty-first"),
        ("1,984", "one thousand, nine hundred and eighty-four"),
        ("1984", "nineteen eighty-four"),
        ("60s", "sixties"),
        ("0.5", "zero point five"),
        ("10:30", "ten : thirty"),
        ("B2B", "B two B"),
        ("1984-85", "nineteen eighty-four - eighty-five"),
    ],
)
def test_english(word, spoken):
    assert spoken_form(word) == spoken


def test_other_languages_have_numbers_alone():
    assert spoken_form("25", "de") == "fünfundzwanzig"
    assert spoken_form("Dr.", "de") == "Dr."
    assert spoken_form("25", "xx") == "25"
