import io
import unicodedata
from collections import Counter

import pytest
import sentencepiece
from hyperpyyaml import load_hyperpyyaml
from hypothesis import given
from hypothesis import strategies as st
from speechbrain.utils.parameter_transfer import Pretrainer

from ent_brain.errors import InputError
from ent_brain.tokens import (
    CharacterTokens,
    CharTokens,
    SentencePieceTokens,
    describe_unknown,
    learn_characters,
    load_characters,
    load_sentencepiece,
    normalize_transcript,
    normalize_unicode,
    train_sentencepiece,
    unknown_characters,
)

# SPEC.md, section 2.
IN_ORDER = "<blank> <unk> SPACE E T A O N I H S R D L U M W C F G Y P B V K ' X J Q Z <sos/eos>"

TRANSCRIPTS = [
    "I PUT THE LAMP ON THE TABLE",
    "SHE FOUND MY OLD BAG IN THE CAR",
    "DON'T WE NEED THE KETTLE",
    "THEY'RE WALKING TO THE STATION",
    "WHO FOUND THE LAMP IN THE STATION",
]
VOCAB_SIZE = 60
transcripts = st.text("ETAONIHSRDLUMWCFGYPBVK'XJQZ  ", max_size=40).map(normalize_transcript)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a folder with spaces")
    return train_sentencepiece(TRANSCRIPTS, folder / "my pieces.model", VOCAB_SIZE)


@pytest.fixture(params=["char", "characters", "bpe"])
def tokens(request, pieces):
    characters = CharacterTokens(sorted(set("".join(TRANSCRIPTS)) - {" "}))
    return {"char": CharTokens(), "characters": characters, "bpe": pieces}[request.param]


# --- normalisation


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Excuse me.", "EXCUSE ME"),
        ("I don't know; it's 'fine'", "I DON'T KNOW IT'S 'FINE'"),
        ("Well--I [LAUGHTER] see...", "WELL I LAUGHTER SEE"),
        ('"Oh," she said:  "no?!"', "OH SHE SAID NO"),
        ("so-called\tword\nhere", "SO CALLED WORD HERE"),
        ("  ,a, , b  ", "A B"),
        ("a(b)c/d*e", "A(B)C/D*E"),
        ('[.,?!-:;"]', ""),
        ("", ""),
    ],
)
def test_transcripts_are_normalised(text, normal):
    assert normalize_transcript(text) == normal


@given(st.text())
def test_a_normal_transcript_stays_as_it_is(text):
    normal = normalize_transcript(text)
    assert normalize_transcript(normal) == normal
    assert not set(normal) & set('[].,?!-:;"\t\n')
    assert normal == " ".join(normal.split())


# --- normalisation of any language


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        # German
        ("„Guten Tag“, sagte er.", "GUTEN TAG SAGTE ER"),
        ("Straße, STRAẞE und STRASSE", "STRASSE STRASSE UND STRASSE"),
        ("Öl – Übel; Ärger (100 %)", "ÖL ÜBEL ÄRGER 100"),
        ("Auf\u200clage, Donau\u00addampf", "AUFLAGE DONAUDAMPF"),
        # English and French
        ("Don’t don‘t don`t don´t don\u02bct don＇t", " ".join(["DON'T"] * 6)),
        ("rock ’n’ roll, the dogs’ bones - ' -", "ROCK 'N' ROLL THE DOGS' BONES"),
        ("``Quoted'' and ''so''", "QUOTED AND SO"),
        ("naïve—café…", "NAÏVE CAFÉ"),
        ("L’œuvre «d’été» n°\u00a03 !", "L'ŒUVRE D'ÉTÉ N 3"),
        ("5′ or 6\u2033", "5 OR 6"),
        ("ﬁne ﬀ ＡＢｃ１ ŉ", "FINE FF ABC1 'N"),
        ("a_b=c+d & $5 @ #x ~ ¨ ´", "A B C D 5 X"),
        ("I ❤\ufe0f U 👍🏽\u200d!", "I U"),
        ("A\ufe0fB 葛\U000e0100葉 E\u034f\u0301", "AB 葛葉 É"),
        ("zero\u200bwidth \ufeffmark", "ZEROWIDTH MARK"),
        ("tab\tline\r\nnull\x00bell", "TAB LINE NULL BELL"),
        # Turkish: upper case without a locale
        ("İstanbul ılık iyi ğ", "İSTANBUL ILIK IYI Ğ"),
        # Greek: the final sigma, the iota below a letter, the apostrophe of old texts
        ("Ὀδυσσεύς, σοφός", "ὈΔΥΣΣΕΎΣ ΣΟΦΌΣ"),
        ("ᾳ ἀλλ\u1fbd ἐγώ", "ΑΙ ἈΛΛ' ἘΓΏ"),
        # Russian
        ("Ёлка и подъезд?", "ЁЛКА И ПОДЪЕЗД"),
        # Hindi: the vowel signs, the virama and the nukta stay
        ("नमस्ते, \u0958िताब।", "नमस्ते \u0915\u093cिताब"),
        # Thai: SARA AM is a compatibility form of two characters
        ("น้ำ ๆ ๏ ฿", "น\u0e49\u0e4d\u0e32 ๆ"),
        # Sinhala, Malayalam and Persian: joiners that change the word
        ("ශ්\u200dරී", "ශ්\u200dරී"),
        ("അവന്\u200d", "അവന്\u200d"),
        ("می\u200cخواهم\u200c، نه", "می\u200cخواهم نه"),
        ("مَرْحَبًا؟", "مَرْحَبًا"),
        ("ﻻ", "لا"),
        # Hebrew
        ("ג׳ירפה, צה״ל", "ג'ירפה צה ל"),
        # Japanese and Korean
        ("「ｶﾞｷﾞ」、ラーメン・今日。", "ガギ ラーメン 今日"),
        ("\u1112\u1161\u11ab글", "한글"),
        ("!?…", ""),
        ("'", ""),
        ("", ""),
    ],
)
def test_any_language_is_normalised(text, normal):
    assert normalize_unicode(text) == normal
    for form in ("NFC", "NFD"):
        assert normalize_unicode(unicodedata.normalize(form, text)) == normal


NO_SURROGATES = st.characters(exclude_categories=["Cs"])
# Rare characters that whole Unicode seldom brings together.
TRICKY = st.sampled_from(
    "'’`´\u200c\u200d\u00ad\u034f\u0345\u1fbf\u1fcd\u094d\u093c\u0627\u0654\ufcf2\u0301\u0323\u0338="
    "ßẞıİŉς¨\u309bｶﾞ\ufe0f\u115f\u1100\u1161 .aA1"
)


@given(st.text(NO_SURROGATES | TRICKY) | st.text(TRICKY))
def test_a_normal_text_of_any_language_stays_as_it_is(text):
    normal = normalize_unicode(text)
    assert normalize_unicode(normal) == normal
    assert normal == unicodedata.normalize("NFKC", normal.upper())
    assert normal == " ".join(normal.split(" "))
    kinds = {unicodedata.category(c) for c in normal if c not in " '\u200c\u200d"}
    assert not {kind for kind in kinds if kind[0] in "PSZ" or kind in ("Cc", "Cf")}


@given(st.text(NO_SURROGATES | TRICKY) | st.text(TRICKY))
def test_the_form_of_a_text_does_not_matter(text):
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert normalize_unicode(composed) == normalize_unicode(decomposed) == normalize_unicode(text)


def test_every_character_is_normal_after_one_pass():
    plain = {"Cn", "Co", "Cs", "Lo"}  # what nothing is done to, unless it has a decomposition
    characters = [
        c
        for c in map(chr, range(0x110000))
        if unicodedata.category(c) not in plain or unicodedata.decomposition(c)
    ]
    assert len(characters) > 10_000
    normal = normalize_unicode(" ".join(f"A{c}A" for c in characters))
    assert normalize_unicode(normal) == normal
    assert normal.upper() == normal


def test_tokens_normalise_as_they_were_trained(pieces):
    text = "Don’t (café)"
    for tokens in (CharTokens(), pieces, SentencePieceTokens(None)):
        assert tokens.normalization == "published"
        assert tokens.normalize(text) == "DON’T (CAFÉ)"
    learnt = CharacterTokens("A")
    for tokens in (CharTokens("unicode"), learnt, SentencePieceTokens(None, "unicode")):
        assert tokens.normalization == "unicode"
        assert tokens.normalize(text) == "DON'T CAFÉ"


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(InputError, match="normalization: 'NFKC': choose published or unicode"):
        CharTokens("NFKC")


# --- characters


def test_characters_stand_in_the_paper_s_order():
    characters = CharTokens()
    assert len(characters) == 31
    written = [characters.decode([index]) for index in range(31)]
    assert written == ["" if name == "SPACE" else name for name in IN_ORDER.split()]
    letters = [name for name in IN_ORDER.split() if len(name) == 1]
    ids = [IN_ORDER.split().index(letter) for letter in letters]
    assert characters.encode("".join(letters)) == ids
    assert characters.encode("A B") == [5, 2, 22]


def test_a_character_outside_the_list_is_unknown():
    assert CharTokens().encode("É7é(") == [1, 1, 1, 1]
    assert CharTokens().decode([5, 1, 22]) == "A<unk>B"


@given(transcripts)
def test_characters_come_back(transcript):
    characters = CharTokens()
    assert characters.decode(characters.encode(transcript)) == transcript


def test_space_tokens_never_make_empty_words():
    assert CharTokens().decode([2, 2, 5, 2, 2, 22, 2]) == "A B"
    assert CharTokens().decode([2, 2]) == ""


# --- characters that are learnt

GERMAN = ["ÜBER DEN FLUSS", "DER BÄR ÜBT"]


def test_characters_are_learnt_by_frequency_then_code_point(tmp_path):
    tokens = learn_characters(GERMAN, tmp_path / "characters.txt")
    # R 3, E 3, B 3, D 2, S 2, Ü 2, and once F, L, N, T, U, Ä; R, E, B and D, S, Ü by code point.
    assert [tokens.decode([index]) for index in range(len(tokens))] == [
        *("<blank>", "<unk>", ""),
        *"BERDSÜFLNTUÄ",
        "<sos/eos>",
    ]
    assert tokens.encode("BÄR ÖL") == [3, 14, 5, 2, 1, 10]
    for transcript in GERMAN:
        assert tokens.decode(tokens.encode(transcript)) == transcript


def test_the_list_of_characters_is_readable(tmp_path):
    path = tmp_path / "characters.txt"
    learn_characters(["E\u0323\u0304 ش\u200c"] * 2, path)
    heading, *lines = path.read_text(encoding="utf-8").splitlines()
    assert heading.startswith("# Characters of the tokens")
    assert lines == [
        "E\tLATIN CAPITAL LETTER E",
        "\u0304\tCOMBINING MACRON",
        "\u0323\tCOMBINING DOT BELOW",
        "ش\tARABIC LETTER SHEEN",
        "\u200c\tZERO WIDTH NON-JOINER",
    ]
    assert load_characters(path).encode("\u0323\u200c") == [5, 7]
    assert [file.name for file in tmp_path.iterdir()] == ["characters.txt"]


@given(st.lists(st.text(NO_SURROGATES).map(normalize_unicode), min_size=1))
def test_learnt_characters_come_back(tmp_path_factory, transcripts):
    transcripts.append("A")
    tokens = learn_characters(transcripts, tmp_path_factory.mktemp("learnt") / "characters.txt")
    for transcript in transcripts:
        ids = tokens.encode(transcript)
        assert tokens.decode(ids) == transcript
        assert not {0, 1, len(tokens) - 1} & set(ids)


def test_a_list_that_an_editor_has_saved_is_read(tmp_path):
    path = tmp_path / "characters.txt"
    path.write_bytes("\ufeff# mine\r\nÄ\tname\r\nß\r\n'".encode())
    assert load_characters(path).encode("Äß'") == [3, 4, 5]


@pytest.mark.parametrize("transcripts", [[], ["", " "]])
def test_no_character_cannot_be_learnt(tmp_path, transcripts):
    path = tmp_path / "characters.txt"
    with pytest.raises(InputError, match=r"characters\.txt: no transcript has a character"):
        learn_characters(transcripts, path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no list of characters: learn one first"),
        (b"", "line 1: does not start with #"),
        (b"A\nB\n", "line 1: does not start with #"),
        (b"# x\n", "line 2: no character"),
        (b"# x\nA\n\nB\n", "line 3: '': not one code point"),
        (b"# x\nA\nB\tb\nA\ta\n", "line 4: 'A': as in line 2"),
        ("# x\nA\u0301\n".encode(), "line 2: 'A\u0301': not one code point"),
        (b"# x\nA\n \n", "line 3: ' ': a space or a control"),
        ("# x\n\u2028\n".encode(), r"line 2: '\u2028': a space or a control"),
        (b"# x\nA\n\x00\n", r"line 3: '\x00': a space or a control"),
        ("# x\nA\nÄ\n".encode("latin-1"), "line 3: not UTF-8"),
        ("# x\nA\n".encode("utf-16"), "line 1: not UTF-8"),
    ],
)
def test_a_damaged_list_of_characters_is_refused(tmp_path, content, problem):
    path = tmp_path / "characters.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        load_characters(path)
    assert str(raised.value).startswith(f"{path}: {problem}")


def test_an_export_loads_its_tokens(tmp_path):
    learn_characters(GERMAN, tmp_path / "tokens.ckpt")
    tokens = load_hyperpyyaml("tokens: !new:ent_brain.tokens.CharacterTokens")["tokens"]
    assert len(tokens) == 4
    pretrainer = Pretrainer(loadables={"tokens": tokens})
    pretrainer.collect_files(default_source=str(tmp_path))
    pretrainer.load_collected()
    assert len(tokens) == 16
    assert tokens.decode(tokens.encode("BÄR")) == "BÄR"


def test_older_exports_still_load():
    parts = load_hyperpyyaml(
        "processor: !new:sentencepiece.SentencePieceProcessor\n"
        "pieces: !new:ent_brain.tokens.SentencePieceTokens\n"
        "    processor: !ref <processor>\n"
        "characters: !new:ent_brain.tokens.CharTokens\n"
    )
    assert parts["pieces"].processor is parts["processor"]
    assert {parts[name].normalization for name in ("pieces", "characters")} == {"published"}


# --- pieces


def test_pieces_are_laid_out_as_the_model_expects(pieces):
    assert len(pieces) == VOCAB_SIZE
    assert [pieces.decode([index]) for index in (0, 1)] == ["<blank>", "<unk>"]
    assert pieces.decode([VOCAB_SIZE - 1]) == "<sos/eos>"
    ids = [index for transcript in TRANSCRIPTS for index in pieces.encode(transcript)]
    assert min(ids) > 1
    assert max(ids) < VOCAB_SIZE - 1
    assert pieces.encode("É")[-1:] == [1]


def test_pieces_are_longer_than_characters(pieces):
    assert len(pieces.encode(TRANSCRIPTS[0])) < len(TRANSCRIPTS[0])


@given(st.lists(st.sampled_from(" ".join(TRANSCRIPTS).split()), max_size=12))
def test_pieces_come_back(pieces, words):
    transcript = " ".join(words)
    assert pieces.decode(pieces.encode(transcript)) == transcript


def test_pieces_are_read_from_their_file(pieces, tmp_path):
    path = tmp_path / "other name.model"
    path.write_bytes(pieces.processor.serialized_model_proto())
    loaded = load_sentencepiece(path)
    assert len(loaded) == VOCAB_SIZE
    assert loaded.encode(TRANSCRIPTS[1]) == pieces.encode(TRANSCRIPTS[1])


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_what_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "pieces.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"pieces\.model: not a SentencePiece model: train one"):
        load_sentencepiece(path)


def test_a_model_with_other_ids_is_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRANSCRIPTS),
        model_prefix=str(tmp_path / "pieces"),
        model_type="bpe",
        vocab_size=40,
        minloglevel=2,
    )
    with pytest.raises(InputError, match="<blank> is not 0 or <unk> is not 1: train the model"):
        load_sentencepiece(tmp_path / "pieces.model")


LANGUAGES = {
    "German": ["Die Straße führt über den Fluß.", "„Schöne Grüße“, sagt der Bär."],
    "Russian": ["Мама мыла раму, а Ёжик ел щи.", "Подъезд и объём — мыло."],
    "Hindi": ["नमस्ते, आप कैसे हैं?", "मैं ठीक हूँ। किताब क़लम"],
    "Japanese": ["今日は天気がいいですね。", "今日はラーメンが食べたいです。"],
    "Arabic": ["مرحبا، كيف حالك اليوم؟", "أنا بخير، شكرا لك. می\u200cخواهم"],
    "Thai": ["สวัสดีครับ", "ขอน้ำหน่อยครับ"],
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_pieces_of_any_script_come_back(tmp_path, language):
    transcripts = [normalize_unicode(text) for text in LANGUAGES[language]]
    size = len(set("".join(transcripts)) - {" "}) + 8  # the four others and some pairs
    pieces = train_sentencepiece(transcripts, tmp_path / "pieces.model", size, "unicode")
    assert len(pieces) == size
    loaded = load_sentencepiece(tmp_path / "pieces.model", "unicode")
    mixed = " ".join(word[::-1] for word in transcripts[0].split())
    for transcript in (*transcripts, mixed):
        ids = loaded.encode(transcript)
        assert 1 not in ids
        assert loaded.decode(ids) == transcript
        assert [text for text, _, _ in loaded.words(ids)] == transcript.split()
    assert len(pieces.encode(transcripts[0])) < len(transcripts[0])
    assert loaded.normalize(LANGUAGES[language][0]) == transcripts[0]


def test_pieces_are_learnt_from_long_transcripts_too(tmp_path):
    transcripts = ["क" * 1500 + " ख", "क ग"]  # 3 bytes a letter
    pieces = train_sentencepiece(transcripts, tmp_path / "pieces.model", 8, "unicode")
    assert 1 not in pieces.encode("ख")


def test_published_pieces_are_trained_as_ever(pieces):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRANSCRIPTS),
        model_writer=model,
        **{"model_type": "bpe", "vocab_size": VOCAB_SIZE - 1, "character_coverage": 1.0},
        **{"pad_id": 0, "pad_piece": "<blank>", "unk_id": 1, "bos_id": -1, "eos_id": -1},
        minloglevel=2,
    )
    assert pieces.processor.serialized_model_proto() == model.getvalue()


# --- characters that the tokens lack


def test_unknown_characters_are_counted(tokens):
    transcripts = ["THE CAFÉ", "THE LAMP", "ÉÉ Ñ", "DON’T É"]
    assert unknown_characters(transcripts, tokens) == (3, Counter({"É": 4, "Ñ": 1, "’": 1}))
    assert unknown_characters(TRANSCRIPTS, tokens) == (0, Counter())
    assert unknown_characters([], tokens) == (0, Counter())


def test_a_line_tells_of_unknown_characters(pieces):
    characters = Counter({"É": 9, "ß": 4})
    found = "12 of 400 utterances (3.0 %) have characters that the tokens lack: É (9), ß (4): "
    assert describe_unknown(12, 400, characters, CharTokens()) == (
        found + "learn the characters from the text with tokens: characters, "
        "or correct these transcripts"
    )
    for tokens in (pieces, CharacterTokens("A")):
        assert describe_unknown(12, 400, characters, tokens) == (
            found + "add training transcripts that have them, or correct these transcripts"
        )
    assert describe_unknown(0, 400, Counter(), CharTokens()) == ""


def test_a_line_shows_ten_characters_and_what_is_hard_to_see():
    characters = Counter({"\u0301": 30, "\u200d": 20, **dict.fromkeys("ÀÁÂÃÄÅÆÇÈÉ", 1)})
    line = describe_unknown(1, 3, characters, CharTokens())
    assert "1 of 3 utterances (33.3 %)" in line
    assert "lack: ◌\u0301 (30), U+200D (20), À (1), " in line
    assert "Ç (1), and 2 more: learn" in line
    assert "È" not in line


# --- where words stand


@pytest.mark.parametrize("transcript", TRANSCRIPTS)
def test_words_cover_their_tokens_but_for_spaces_that_stand_alone(tokens, transcript):
    ids = tokens.encode(transcript)
    words = tokens.words(ids)
    assert [text for text, _, _ in words] == transcript.split()
    covered = [index for _, first, end in words for index in range(first, end)]
    assert covered == sorted(set(covered))
    assert all(tokens.decode([ids[first]]) for _, first, _ in words)
    assert all(not tokens.decode([ids[index]]) for index in set(range(len(ids))) - set(covered))
    assert [tokens.decode(ids[first:end]) for _, first, end in words] == transcript.split()


def test_words_of_a_broken_hypothesis_still_stand_apart(tokens):
    ids = tokens.encode("THE LAMP")
    assert tokens.words([*ids, len(tokens) - 1])[-1][0] == "LAMP<sos/eos>"
    assert tokens.words([]) == []


def test_a_word_of_characters_begins_at_its_first_letter():
    characters = CharTokens()
    assert characters.words(characters.encode("THE LAMP")) == [("THE", 0, 3), ("LAMP", 4, 8)]
    assert characters.words([2, 2, 5, 2]) == [("A", 2, 3)]


def test_a_word_of_pieces_ends_before_the_next_word_start(pieces):
    ids = pieces.encode("LAMP")
    alone = pieces.processor.piece_to_id("\u2581")
    assert pieces.words([alone, *ids, alone]) == [("LAMP", 1, 1 + len(ids))]
