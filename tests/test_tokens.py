import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from ent_brain.errors import InputError
from ent_brain.tokens import (
    CharTokens,
    load_sentencepiece,
    normalize_transcript,
    train_sentencepiece,
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


@pytest.fixture(params=["char", "bpe"])
def tokens(request, pieces):
    return {"char": CharTokens(), "bpe": pieces}[request.param]


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
