"""Synthetic acted speech: look-alikes of IEMOCAP, of ZED and of a researcher's own corpus.

``python -m ent_brain.synth iemocap FOLDER --utterances 1000 --seed 1`` (or ``zed``, or
``table FOLDER --language de``). The same seed writes the same bytes. ``ground_truth.json`` has the
times of every word and of the emotion, which the real corpora lack. No recipe reads it.
"""

import argparse
import contextlib
import csv
import json
import math
import multiprocessing
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.signal import resample_poly
from tqdm import tqdm

from ent_brain import espeak
from ent_brain.errors import InputError, exit_on_input_error
from ent_brain.segments import Segment

SAMPLE_RATE = 16000
RAMP = 0.02
"""Seconds over which voice and loudness change at the start and end of an emotional part."""
IEMOCAP_SHARES, ZED_SHARES, TABLE_SHARES = (0.4, 1.0), (0.25, 0.7), (1.0, 1.0)
"""Smallest and largest share of an utterance's words that carry its emotion."""
WORDS = range(3, 10)
"""Number of words in a sentence."""

# Upper-case words are symbols with alternatives. A sentence does not depend on its emotion.
_ENGLISH_GRAMMAR = {
    "SENTENCE": "CLAUSE.|CLAUSE.|CLAUSE.|LEAD CLAUSE.|CLAUSE--|QUESTION?",
    "LEAD": "Well,|Okay,|So|Yeah,|You see,",
    "CLAUSE": "PERSON PUT THING PLACE|PERSON FOUND THING PLACE|PERSON FOUND THING WHEN"
    "|PERSON COULD FIND THING|PERSON COULD FIND THING WHEN|PERSON COULD FIND THING PLACE"
    "|WE'RE GOING to the SHOP|WE'RE GOING to the SHOP WHEN|PERSON WENT to the SHOP WHEN"
    "|it's PLACE|that's THING|there's a OBJECT PLACE|THING is PLACE|THING isn't PLACE"
    "|I don't NEED THING WHEN",
    "QUESTION": "where's THING|did PERSON FIND THING|is THING PLACE|who FOUND THING WHEN"
    "|why don't you FIND THING|COULD PERSON GO to the SHOP",
    "PERSON": "the WORKER|DET RELATIVE|NAME|we|they|she|he|you|I",
    "WORKER": "teacher|driver|doctor|farmer|baker|student|waiter|gardener|painter|clerk",
    "RELATIVE": "brother|sister|neighbour|cousin|uncle|colleague|mother|father",
    "NAME": "Anna|Tom|Peter|Maria|David|Lucy|Frank|Helen",
    "PUT": "put|left|dropped|kept",
    "FOUND": "found|saw|carried|cleaned|painted|opened|moved|bought|sold|used",
    "COULD": "didn't|can't|won't|couldn't|will|could|should|might",
    "FIND": "find|see|carry|clean|paint|open|move|buy|bring|count|sell|use",
    "NEED": "need|use|want|see|sell",
    "WE'RE": "we're|they're|I'm|she's|he's",
    "GOING": "walking|driving|cycling|going|riding",
    "WENT": "walked|drove|cycled|went|returned",
    "GO": "walk|drive|cycle|go|return",
    "THING": "DET OBJECT|DET OBJECT|DET COLOUR OBJECT",
    "DET": "the|my|his|her|your|our|their",
    "COLOUR": "green|brown|yellow|small|large|wooden|old|new|round|second|grey|paper",
    "OBJECT": "lamp|bottle|bag|box|chair|letter|newspaper|ticket|basket|bucket|pencil|carpet"
    "|ladder|radio|clock|blanket|plate|spoon|kettle|jacket|picture|suitcase|notebook|cup",
    "PLACE": "on the DESK|in the ROOM|NEAR the DESK|NEAR the DOOR",
    "DESK": "table|desk|shelf|sofa|bench|stairs|counter",
    "ROOM": "kitchen|garden|hallway|garage|cupboard|corner|car|drawer",
    "NEAR": "near|behind|beside|by",
    "DOOR": "door|window|fence|wall|tree|gate",
    "SHOP": "station|office|market|library|bank|river|bakery|museum|park|harbour|school|village",
    "WHEN": "on DAY|after MEAL|before MEAL|at HOUR|in the MORNING|over the weekend",
    "DAY": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "MEAL": "lunch|dinner|breakfast|work|class",
    "HOUR": "noon|seven|eight|nine|ten|eleven",
    "MORNING": "morning|evening|afternoon",
}
_GERMAN_GRAMMAR = {
    "SENTENCE": "CLAUSE.|CLAUSE.|CLAUSE.|CLAUSE!|LEAD, CLAUSE.|QUESTION?|QUESTION?"
    "|NAME sagt: „CLAUSE.“|„QUESTION?“, fragt NAME.",
    "LEAD": "ja|nein|also|doch|übrigens",
    "CLAUSE": "PERSON BUYS OBJECT|PERSON BUYS OBJECT WHEN|WHEN BUYS PERSON OBJECT"
    "|PERSON WOULD OBJECT BUY|ich möchte OBJECT BUY|wir müssen OBJECT BUY"
    "|THING ist NICE|THING steht PLACE|THING ist nicht PLACE|PLACE steht THING"
    "|PERSON geht TOWN|WHEN fährt PERSON TOWN|ich weiß es nicht|mir gefällt THING",
    "QUESTION": "wo ist THING|steht THING PLACE|wer BUYS OBJECT|warum BUYS PERSON OBJECT"
    "|wann fährt PERSON TOWN|WOULD PERSON OBJECT BUY|ist THING NICE",
    "PERSON": "NAME|NAME|der Bäcker|die Ärztin|der Schüler|die Köchin|mein Großvater"
    "|meine Großmutter|unser Nachbar|er|sie",
    "NAME": "Jürgen|Käthe|Sören|Bärbel|Anna|Lukas|Maria|Peter",
    "BUYS": "kauft|sucht|findet|öffnet|schließt|trägt|braucht|bringt|wäscht|vergisst|verkauft",
    "BUY": "kaufen|suchen|finden|öffnen|schließen|tragen|holen|bringen|waschen|vergessen",
    "WOULD": "möchte|muss|kann|darf|will|könnte|würde",
    "OBJECT": "MASCULINES|den OLDS MASCULINE|FEMININES|die OLD FEMININE|NEUTERS|das OLD NEUTER",
    "THING": "der MASCULINE|FEMININES|NEUTERS|der OLD MASCULINE|die OLD FEMININE|das OLD NEUTER",
    "MASCULINES": "den MASCULINE|meinen MASCULINE|deinen MASCULINE",
    "FEMININES": "die FEMININE|meine FEMININE|deine FEMININE",
    "NEUTERS": "das NEUTER|mein NEUTER|dein NEUTER",
    "MASCULINE": "Schlüssel|Löffel|Käse|Kuchen|Koffer|Stuhl|Gürtel",
    "FEMININE": "Tür|Tüte|Tasse|Blume|Schüssel|Lampe|Jacke|Zeitung",
    "NEUTER": "Brot|Buch|Gemüse|Messer|Radio|Bild|Gepäck",
    "OLD": "alte|neue|große|kleine|weiße|grüne|schöne|schwere",
    "OLDS": "alten|neuen|großen|kleinen|weißen|grünen|schönen|schweren",
    "NICE": "alt|neu|groß|klein|weiß|grün|schön|schwer",
    "PLACE": "auf dem Tisch|auf der Straße|vor der Brücke|in der Küche|im Garten|hinter dem Haus"
    "|neben dem Fenster|im Büro|in der Nähe",
    "TOWN": "nach Hause|nach München|nach Köln|zur Schule|zum Bäcker|über die Brücke|in die Küche",
    "WHEN": "heute|morgen|später|jetzt|am Montag|am Abend|nächste Woche|um fünf Uhr|um zwölf Uhr",
}


class Speaker(NamedTuple):
    """A voice of espeak-ng and its neutral way of speaking."""

    variant: str  # espeak-ng's name of the voice, for any language
    pitch: int  # espeak-ng's scale: 50 is the voice's own, 4 is a semitone
    rate: int  # words per minute
    level: float  # dBFS


# The voices differ in formants, pitch, rate and level. There are no variants with an echo, because
# their words would last longer than their measured times.
IEMOCAP_SPEAKERS = {
    "Ses01F": Speaker("f1", 52, 180, -27.0),
    "Ses01M": Speaker("m1", 46, 165, -26.0),
    "Ses02F": Speaker("linda", 44, 170, -29.0),
    "Ses02M": Speaker("m3", 56, 185, -25.5),
    "Ses03F": Speaker("steph", 53, 190, -26.5),
    "Ses03M": Speaker("m7", 50, 175, -28.0),
    "Ses04F": Speaker("Annie", 46, 165, -28.5),
    "Ses04M": Speaker("m8", 58, 170, -27.5),
    "Ses05F": Speaker("Andrea", 43, 160, -25.0),
    "Ses05M": Speaker("Mike", 52, 180, -26.0),
}
ZED_SPEAKERS = {
    "speaker01": Speaker("aunty", 54, 175, -27.0),
    "speaker02": Speaker("m4", 50, 170, -26.0),
    "speaker03": Speaker("grandma", 47, 165, -28.0),
    "speaker04": Speaker("m6", 55, 185, -27.0),
    "speaker05": Speaker("anika", 42, 160, -26.5),
    "speaker06": Speaker("Gene", 48, 180, -25.5),
    "speaker07": Speaker("belinda", 41, 185, -28.0),
    "speaker08": Speaker("Nguyen", 46, 170, -26.5),
}
TABLE_SPEAKERS = {
    speaker.variant: speaker for speaker in (IEMOCAP_SPEAKERS | ZED_SPEAKERS).values()
}
TABLE_SPLITS = {"train": 12, "valid": 2, "test": 4}
"""Number of ``TABLE_SPEAKERS`` in each split, in order; women and men alternate."""


class Style(NamedTuple):
    """Difference between emotional speech of intensity 1 and the speaker's neutral speech."""

    semitones: float = 0.0  # pitch
    span: float = 0.0  # log2 of the factor on the pitch range
    tempo: float = 0.0  # log2 of the factor on the rate
    gain: float = 0.0  # dB
    tilt: float = 0.0  # dB per octave: bright above 0, dull below
    drive: float = 0.0  # saturation: a pressed, harsh voice
    breath: float = 0.0  # aspiration noise, as a share of the speech's level


# After the vocal correlates reviewed by Scherer (2003), Speech Communication 40:227.
STYLES = {
    "happy": Style(semitones=5.0, span=0.9, tempo=0.2, gain=4.0, tilt=1.5),
    "angry": Style(semitones=2.0, span=0.4, tempo=0.25, gain=8.0, tilt=2.5, drive=1.2),
    "sad": Style(semitones=-3.0, span=-1.2, tempo=-0.5, gain=-6.0, tilt=-3.0, breath=0.25),
    "neutral": Style(),
}
_GERMAN_STYLES = {
    "freude": STYLES["happy"],
    "wut": STYLES["angry"],
    "trauer": STYLES["sad"],
    "angst": Style(semitones=4.5, span=-1.2, tempo=0.3, gain=-3.0, tilt=1.0, breath=0.15),
    "überraschung": Style(semitones=9.0, span=1.0, tempo=-0.5, gain=2.0, tilt=-2.0, breath=0.2),
    "neutral": Style(),
}


class Language(NamedTuple):
    """A language of a corpus: a row of ``LANGUAGES``."""

    voice: str  # espeak-ng's name of the language
    grammar: dict  # alternatives of every symbol; SENTENCE is the start symbol
    styles: dict  # emotion: Style
    clitics: tuple  # words that espeak-ng may merge with the word before: "on the"


LANGUAGES = {
    "en": Language("en-us", _ENGLISH_GRAMMAR, STYLES, ("the",)),
    "de": Language("de", _GERMAN_GRAMMAR, _GERMAN_STYLES, ()),
}


class Utterance(NamedTuple):
    """A spoken sentence; times in seconds from the start of its file."""

    text: str
    samples: np.ndarray  # int16 at SAMPLE_RATE
    words: list  # (upper-case word without punctuation, start, end)
    segments: list  # Segment, the emotional ones only

    @property
    def duration(self):
        return round(len(self.samples) / SAMPLE_RATE, 4)

    def truth(self):
        """Its entry in ``ground_truth.json`` (dict)."""
        return {"words": self.words, "segments": [s._asdict() for s in self.segments]}


def draw_sentence(rng, language="en"):
    """Draw a sentence of 3 to 9 words from the grammar of a language.

    Example
    -------
    >>> draw_sentence(np.random.default_rng(3))
    'My sister sold your green bag in the garage--'
    >>> draw_sentence(np.random.default_rng(3), "de")
    'Jürgen sagt: „Später sucht unser Nachbar das weiße Brot.“'
    """
    grammar = LANGUAGES[language].grammar
    symbols = re.compile("|".join(rf"\b{symbol}\b" for symbol in grammar))

    def expand(symbol):
        alternatives = grammar[symbol[0]].split("|")
        return symbols.sub(expand, alternatives[rng.integers(len(alternatives))])

    sentence = ""
    while len(sentence.split()) not in WORDS:
        sentence = expand(["SENTENCE"])
    return re.sub(r"(^|„)\w", lambda first: first[0].upper(), sentence)


def speak_emotionally(rng, speaker, emotion, shares, language="en"):
    """Synthesise a sentence of a speaker, with an emotion on a part of its words.

    Arguments
    ---------
    rng : numpy.random.Generator
        Draws the sentence, the emotional part, the intensity, the speaker's variation and the
        noise.
    speaker : Speaker
    emotion : str
        One of the language's styles.
    shares : tuple[float, float]
        Smallest and largest share of the words in the emotional part.
    language : str
        One of ``LANGUAGES``.

    Returns
    -------
    Utterance
    """
    voice, _, styles, clitics = LANGUAGES[language]
    text = draw_sentence(rng, language)  # first, so that it cannot depend on the emotion
    words = text.split()
    first, last = _draw_stretch(rng, len(words), shares)
    intensity = rng.uniform(0.8, 1.3)
    style = Style(*(value * intensity * rng.uniform(0.8, 1.2) for value in styles[emotion]))
    pitch = speaker.pitch + rng.normal(0.0, 3.0)
    span = 50 * 2 ** rng.normal(0.0, 0.15)

    spoken = [re.sub("--$", ".", word).strip("„“") for word in words]
    spoken = [espeak.WORD_JOINER + word if word in clitics else word for word in spoken]
    spoken[first] = (
        f'<prosody pitch="{round(np.clip(pitch + style.semitones * 50 / 12, 0, 99))}" '
        f'range="{round(min(span * 2**style.span, 99))}" '
        f'rate="{round(100 * 2**style.tempo)}%">{spoken[first]}'
    )
    spoken[last] += "</prosody>"
    speech = espeak.speak(
        " ".join(spoken),
        f"{voice}+{speaker.variant}",
        rate=round(speaker.rate * 2 ** rng.normal(0.0, 0.08)),
        pitch=round(pitch),
        pitch_range=round(min(span, 99)),
        seed=int(rng.integers(2**31)),
    )
    if len(speech.word_starts) != len(words):
        raise RuntimeError(f"espeak-ng took {text!r} for {len(speech.word_starts)} words")

    bounds = _word_bounds(speech) * SAMPLE_RATE // espeak.SAMPLE_RATE
    # SciPy's resampler uses one thread, unlike torchaudio's, so it is faster on a busy machine.
    samples = resample_poly(speech.samples / 2.0**15, SAMPLE_RATE // 50, espeak.SAMPLE_RATE // 50)
    samples = samples[: bounds[-1, 1]]
    samples *= 10 ** ((speaker.level + rng.normal(0.0, 2.0)) / 20) / _rms(samples)
    emotional = any(style)
    if emotional:
        samples = _change_voice(rng, samples, bounds[first, 0], bounds[last, 1], style)
    samples, lead = _record(rng, samples)
    times = ((bounds + lead) / SAMPLE_RATE).round(4).tolist()
    segment = Segment(times[first][0], times[last][1], emotion)
    return Utterance(
        text,
        samples,
        [
            (re.sub(r"[^\w']", "", word).upper(), *time)
            for word, time in zip(words, times, strict=True)
        ],
        [segment] if emotional else [],
    )


def _draw_stretch(rng, words, shares):
    """Draw the first and last of two or more words: at the start, in the middle or at the end."""
    fewest = max(2, math.ceil(shares[0] * words))
    length = int(rng.integers(fewest, math.floor(shares[1] * words) + 1))
    latest = words - length
    first = (0, int(rng.integers(latest + 1)), latest)[rng.integers(3)]
    return first, first + length - 1


def _word_bounds(speech):
    """First sample, and sample after the last, of every word without pauses: int [words, 2]."""
    magnitude = np.abs(speech.samples.astype(int))
    audible = magnitude > 0.01 * magnitude.max()
    stops = [*speech.word_starts[1:], len(audible)]
    return np.array(
        [
            (start, start + 1 + np.flatnonzero(audible[start:stop])[-1])
            for start, stop in zip(speech.word_starts, stops, strict=True)
        ]
    )


def _rms(samples):
    return np.sqrt(np.mean(np.square(samples)))


def _filter(samples, decibels):
    """Filter without delay, so that the result can be cross-faded with the samples.

    ``decibels`` maps octaves above 500 Hz to the gain in dB.
    """
    size = next_fast_len(len(samples), real=True)
    octaves = np.log2(rfftfreq(size, 1 / SAMPLE_RATE).clip(62.5) / 500)
    spectrum = rfft(samples, size) * 10 ** (decibels(octaves) / 20)
    return irfft(spectrum, size)[: len(samples)]


def _below_5_khz(octaves):
    """Gain that limits sounds added to the voice to the band of espeak-ng's voiced sounds."""
    return -40 * (octaves - math.log2(5000 / 500)).clip(min=0)


def _change_voice(rng, samples, start, end, style):
    """Give samples ``start`` to ``end`` the style's loudness and voice quality."""
    level = _rms(samples)
    voice = _filter(samples, lambda octaves: style.tilt * octaves.clip(max=3))
    voice *= level / _rms(voice)
    if style.drive > 0:
        distortion = level / style.drive * np.tanh(style.drive * voice / level) - voice
        voice = voice + _filter(distortion, _below_5_khz)
    if style.breath > 0:
        # Aspiration follows the voice: noise with the voice's envelope over 20 ms.
        envelope = np.sqrt(np.convolve(samples**2, np.full(320, 1 / 320), "same").clip(0))
        noise = _filter(rng.normal(size=len(samples)), _below_5_khz)
        voice = voice + style.breath * envelope * noise / _rms(noise)
    voice *= 10 ** (style.gain / 20) * _rms(samples[start:end]) / _rms(voice[start:end])
    half = RAMP * SAMPLE_RATE / 2
    edges = [start - half, start + half, end - half, end + half]
    inside = np.interp(np.arange(len(samples)), edges, [0.0, 1.0, 1.0, 0.0])
    return samples + inside * (voice - samples)


def _record(rng, samples):
    """Add silence at both ends and a room's noise; return 16-bit samples and the lead's length."""
    lead, tail = (rng.uniform(0.1, 0.2, 2) * SAMPLE_RATE).astype(int)
    samples = np.pad(samples, (lead, tail))
    noise = _filter(rng.normal(size=len(samples)), lambda octaves: -2 * octaves)
    samples = samples + 10 ** (rng.uniform(-55, -45) / 20) * noise / _rms(noise)
    samples *= min(1.0, 0.98 / np.abs(samples).max())
    return (samples * 32767).round().astype("<i2"), lead


# IEMOCAP's labels: emotion, the evaluators' word, and the count in the real release.
_KEPT = {
    "hap": ("happy", "Happiness", 595),
    "exc": ("happy", "Excited", 1041),
    "ang": ("angry", "Anger", 1103),
    "sad": ("sad", "Sadness", 1084),
    "neu": ("neutral", "Neutral", 1708),
}
_LEFT_OUT = {"fru": "Frustration", "xxx": "Other", "oth": "Other", "sur": "Surprise", "fea": "Fear"}
_LEFT_OUT_SHARE = 0.125
_SESSIONS = 5
_DIALOG_UTTERANCES = 20
# An AppleDouble file, which macOS writes on other file systems; it is not UTF-8.
_APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(range(256)) * 4
_UNLABELLED_SHARE = 0.15  # share of a table's training rows without transcript, and without emotion
# Part of the seeds, so that the corpora have different sentences.
_IEMOCAP, _ZED, _TABLE = 1, 2, 3


def write_iemocap(folder, utterances, seed):
    """Write a look-alike of ``IEMOCAP_full_release``.

    In addition to ``utterances``, the corpus has an eighth as many with labels that the recipes
    skip. Their style is drawn independently of the label.

    Arguments
    ---------
    folder : str or Path
        Stands for ``IEMOCAP_full_release``; new or empty.
    utterances : int
        Number of utterances with the labels hap, exc, ang, sad or neu, at least 20, so that every
        session has every emotion. The proportions are about those of the release.
    seed : int

    Raises
    ------
    InputError
        If the folder is not empty, or there are too few utterances.
    """
    _check_enough(utterances, _SESSIONS * len(STYLES))
    with _whole_or_nothing(folder) as partial:
        jobs = []
        for session in range(1, _SESSIONS + 1):
            count = len(range(session - 1, utterances, _SESSIONS))
            labels = _session_labels(np.random.default_rng([seed, _IEMOCAP, session]), count)
            dialogs = max(2, math.ceil(len(labels) / _DIALOG_UTTERANCES))
            for dialog, part in enumerate(np.array_split(labels, dialogs)):
                kind = ("impro{:02d}", "script{:02d}_1")[dialog // 2 % 2].format(dialog // 4 + 1)
                name = f"Ses0{session}{'FM'[dialog % 2]}_{kind}"
                own_seed = [seed, _IEMOCAP, session, dialog + 1]
                jobs.append((own_seed, partial / f"Session{session}", name, part))
        truths = _in_parallel(_write_dialog, jobs, "IEMOCAP dialogs")
        _write_ground_truth(partial, {name: t for truth in truths for name, t in truth.items()})


def _session_labels(rng, count):
    """Labels of a session in random order: ``count`` usable ones, and additional skipped ones."""
    quotas = np.array([frequency for _, _, frequency in _KEPT.values()], dtype=float)
    quotas *= count / quotas.sum()
    counts = np.floor(quotas).astype(int)
    counts[np.argsort(counts - quotas)[: count - counts.sum()]] += 1  # largest remainders
    left_out = rng.choice(list(_LEFT_OUT), round(_LEFT_OUT_SHARE * count))
    return rng.permutation([*np.repeat(list(_KEPT), counts), *left_out])


def _write_dialog(seed, session, name, labels):
    """Write the wavs, the evaluation and the transcription of a dialog; return its ground truth."""
    rng = np.random.default_rng(seed)
    truth, numbers, clock = {}, {"F": 0, "M": 0}, rng.uniform(3.0, 8.0)
    evaluation = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    categories, transcription = [], []
    letters = rng.permutation(list("FM") * ((len(labels) + 1) // 2))[: len(labels)]
    for letter, label in zip(letters, labels, strict=True):
        utterance_id = f"{name}_{letter}{numbers[letter]:03d}"
        numbers[letter] += 1
        if label in _KEPT:
            emotion, category, _ = _KEPT[label]
        else:
            emotion, category = str(rng.choice(list(STYLES))), _LEFT_OUT[label]
        speaker = IEMOCAP_SPEAKERS[name[:5] + letter]
        utterance = speak_emotionally(rng, speaker, emotion, IEMOCAP_SHARES)
        truth[utterance_id] = utterance.truth()
        _write_wav(session / "sentences" / "wav" / name / f"{utterance_id}.wav", utterance.samples)
        end = clock + utterance.duration
        ratings = rng.integers(1, 6, size=(2, 3))
        mean = ", ".join(f"{rating:.4f}" for rating in ratings.mean(axis=0))
        evaluation += [
            f"[{clock:.4f} - {end:.4f}]\t{utterance_id}\t{label}\t[{mean}]",
            *(f"C-{evaluator}:\t{category};\t()" for evaluator in ("E2", "E3", "E4", f"{letter}1")),
            *(
                f"A-E{3 + i}:\tval {v}; act {a}; dom  {d};\t()"
                for i, (v, a, d) in enumerate(ratings)
            ),
            "",
        ]
        categories.append(f"{utterance_id} :{category}; ()")
        transcription.append(f"{utterance_id} [{clock:08.4f}-{end:08.4f}]: {utterance.text}")
        clock = end + rng.uniform(0.2, 1.0)
    # Interjections of the partner are transcribed but not evaluated: without an id, or as MXX.
    transcription += ["M: Uh-huh.", f"{name}_MXX000 [{clock:08.4f}-{clock + 0.4:08.4f}]: Yeah."]
    evaluations = session / "dialog" / "EmoEvaluation"
    _write_text(evaluations / f"{name}.txt", evaluation)
    for kind in ("Attribute", "Categorical", "Self-evaluation"):
        _write_text(evaluations / kind / f"{name}_e2_cat.txt", categories)
    (evaluations / f"._{name}.txt").write_bytes(_APPLE_DOUBLE)
    _write_text(session / "dialog" / "transcriptions" / f"{name}.txt", transcription)
    return truth


def _in_parallel(write, jobs, title):
    """Call ``write`` for every job on all cores (list of results, in the jobs' order)."""
    espeak.require()  # once here, not in every process
    # Each process initialises the library itself, so that the speech depends only on the job.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        results = pool.map(write, *zip(*jobs, strict=True), chunksize=4)
        return list(tqdm(results, desc=title, total=len(jobs)))


def write_zed(folder, utterances, seed):
    """Write a look-alike of the Zaion Emotion Dataset: happy, angry and sad in equal shares.

    Arguments
    ---------
    folder : str or Path
        New or empty folder, for which ``datafolder`` in ``ZED.json`` stands.
    utterances : int
        Number of utterances, at least 3.
    seed : int

    Raises
    ------
    InputError
        If the folder is not empty, or there are too few utterances.
    """
    emotions = [emotion for emotion, style in STYLES.items() if any(style)]
    _check_enough(utterances, len(emotions))
    rng = np.random.default_rng([seed, _ZED])
    with _whole_or_nothing(folder) as partial:
        places = rng.permutation(utterances)
        speakers = rng.choice(list(ZED_SPEAKERS), utterances)
        jobs = [
            (
                [seed, _ZED, index],
                partial / speaker / f"zed_{index:04d}.wav",
                ZED_SPEAKERS[speaker],
                emotions[place % len(emotions)],
                ZED_SHARES,
            )
            for index, (place, speaker) in enumerate(zip(places, speakers, strict=True), 1)
        ]
        entries, truth = {}, {}
        for spoken in _in_parallel(_write_utterance, jobs, "ZED"):
            [segment] = spoken.truth["segments"]
            entries[spoken.id] = {
                "wav": f"datafolder/{spoken.wav}",
                "duration": spoken.duration,
                "emotion": [
                    {"emo": segment["emotion"], "start": segment["start"], "end": segment["end"]}
                ],
                "transcription": spoken.text,
            }
            truth[spoken.id] = spoken.truth
        _write_text(partial / "ZED.json", [json.dumps(entries, indent=2)])
        _write_ground_truth(partial, truth)


class _Spoken(NamedTuple):
    """A written utterance, without its samples."""

    id: str
    wav: str  # relative to the corpus
    text: str
    duration: float
    truth: dict


def _write_utterance(seed, path, *speech):
    """Call ``speak_emotionally``, and write the wav into the speaker's folder."""
    utterance = speak_emotionally(np.random.default_rng(seed), *speech)
    _write_wav(path, utterance.samples)
    wav = f"{path.parent.name}/{path.name}"
    return _Spoken(path.stem, wav, utterance.text, utterance.duration, utterance.truth())


def write_table(folder, utterances, seed, language):
    """Write a look-alike of a researcher's own corpus: WAV files and ``data.csv``.

    The columns are ``ID,wav,transcript,emotion,speaker,split``; ``wav`` is relative to the CSV.
    Every split has its own speakers and all emotions in equal shares. Of the training rows, 15 %
    lack the transcript and another 15 % the emotion.

    Arguments
    ---------
    folder : str or Path
        New or empty folder.
    utterances : int
        Number of rows; at least 9 times the number of emotions, so that every split has them all.
    seed : int
    language : str
        ``de``, with six emotions, or ``en``, with four.

    Raises
    ------
    InputError
        If the language is unknown, the folder is not empty, or there are too few utterances.
    """
    if language not in LANGUAGES:
        raise InputError(f"{language}: unknown language: use one of {', '.join(LANGUAGES)}")
    emotions = list(LANGUAGES[language].styles)
    rounds = len(TABLE_SPEAKERS) // min(TABLE_SPLITS.values())
    _check_enough(utterances, rounds * len(emotions))
    rng = np.random.default_rng([seed, _TABLE])
    speaker_splits = np.repeat(list(TABLE_SPLITS), list(TABLE_SPLITS.values())).tolist()
    speakers = np.resize(list(TABLE_SPEAKERS), utterances).tolist()
    splits = np.resize(speaker_splits, utterances)
    labels = np.empty(utterances, dtype=object)
    for split in TABLE_SPLITS:
        count = (splits == split).sum()
        labels[splits == split] = rng.permutation(np.resize(emotions, count)).tolist()
    unlabelled = rng.permutation(np.flatnonzero(splits == "train"))
    unlabelled = unlabelled[: 2 * round(_UNLABELLED_SHARE * len(unlabelled))].reshape(2, -1)
    with _whole_or_nothing(folder) as partial:
        jobs = [
            (
                [seed, _TABLE, index],
                partial / speaker / f"{language}_{index:05d}.wav",
                TABLE_SPEAKERS[speaker],
                emotion,
                TABLE_SHARES,
                language,
            )
            for index, (speaker, emotion) in enumerate(zip(speakers, labels, strict=True), 1)
        ]
        spoken = _in_parallel(_write_utterance, jobs, "table")
        transcripts = np.array([utterance.text for utterance in spoken], dtype=object)
        transcripts[unlabelled[0]] = ""
        labels[unlabelled[1]] = ""
        with (partial / "data.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("ID", "wav", "transcript", "emotion", "speaker", "split"))
            for utterance, *row in zip(spoken, transcripts, labels, speakers, splits, strict=True):
                writer.writerow((utterance.id, utterance.wav, *row))
        _write_ground_truth(partial, {utterance.id: utterance.truth for utterance in spoken})


def _check_enough(utterances, least):
    if utterances < least:
        raise InputError(f"{utterances} utterances: too few for every emotion: use {least} or more")


@contextlib.contextmanager
def _whole_or_nothing(folder):
    """Yield a temporary folder that is renamed to ``folder`` at the end."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not empty: remove it or name another folder")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # leftover of a killed run
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_wav(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLE_RATE)


def _write_text(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def _write_ground_truth(folder, truth):
    _write_text(folder / "ground_truth.json", [json.dumps(truth)])


@exit_on_input_error
def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m ent_brain.synth",
        description="Synthesise a corpus in the layout of a real one.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("folder", help="new or empty folder")
    common.add_argument("--utterances", type=int, required=True, help="number of utterances")
    common.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    corpora = parser.add_subparsers(dest="corpus", required=True)
    for name, write in (("iemocap", write_iemocap), ("zed", write_zed), ("table", write_table)):
        corpora.add_parser(name, parents=[common]).set_defaults(write=write)
    corpora.choices["table"].add_argument("--language", required=True, help=" or ".join(LANGUAGES))
    arguments = vars(parser.parse_args(argv))
    if arguments["seed"] < 0:
        raise InputError(f"--seed: {arguments['seed']}: give one from 0")
    del arguments["corpus"]
    arguments.pop("write")(**arguments)


if __name__ == "__main__":
    main()
