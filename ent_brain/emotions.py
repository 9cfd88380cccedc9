"""Label sets: the emotions that a recipe and its model distinguish, in a fixed order."""

import unicodedata
from dataclasses import dataclass

from ent_brain.errors import InputError, raise_problems

MOST_EMOTIONS = 12
"""Upper limit of the labels in a set. Pictures have this many colours that everybody can
distinguish."""

MOST_LETTERS = 40
"""Upper limit of the characters in a label's name, so that it fits into tables and pictures."""


@dataclass(frozen=True)
class EmotionSet:
    """An ordered set of emotion labels.

    A label's position is its class index in the model, the losses and the metrics. Output for
    people uses its name.

    Arguments
    ---------
    names : sequence of str
        2 to 12 different names, made of letters, digits, spaces, ``_`` and ``-``.
    neutral : str, optional
        The label of speech without emotion; None if the set has no such label.

    Raises
    ------
    InputError
        If a name is invalid or repeated, if there are too few or too many names, or if ``neutral``
        is not one of them.

    Example
    -------
    >>> emotions = EmotionSet(["joy", "anger", "calm"], neutral="calm")
    >>> len(emotions), emotions.index("anger"), emotions.neutral_index, emotions.codes
    (3, 1, 2, ('j', 'a', 'c'))
    """

    names: tuple[str, ...]
    neutral: str | None = None

    def __post_init__(self):
        if isinstance(self.names, str) or not all(isinstance(name, str) for name in self.names):
            raise InputError(f"emotions: {self.names}: give a list of names, as [happy, neutral]")
        object.__setattr__(self, "names", tuple(self.names))
        problems = [
            f"emotions: {name!r} is no name of 1 to {MOST_LETTERS} letters, digits, spaces, _ and -"
            for name in self.names
            if not _is_name(name)
        ]
        raise_problems(problems, "rename it")
        folded = [name.casefold() for name in self.names]
        twice = [
            name for name, key in zip(self.names, folded, strict=True) if folded.count(key) > 1
        ]
        if twice:
            raise InputError(
                f"emotions: {', '.join(twice)}: the same label twice. Keep one of them."
            )
        if not 2 <= len(self.names) <= MOST_EMOTIONS:
            raise InputError(
                f"emotions: {len(self.names)} labels: give 2 to {MOST_EMOTIONS}; label_map merges "
                "some or leaves them out"
            )
        if self.neutral is not None and self.neutral not in self.names:
            raise InputError(
                f"neutral: {self.neutral!r} is not one of {', '.join(self.names)}: name one of "
                "them, or null"
            )

    def __len__(self):
        """Number of labels."""
        return len(self.names)

    def __iter__(self):
        """Iterate over the names in their order."""
        return iter(self.names)

    @property
    def neutral_index(self):
        """Class index of the neutral label (int), or None."""
        return None if self.neutral is None else self.names.index(self.neutral)

    @property
    def codes(self):
        """Shortest prefixes of the names that are unique (tuple of str).

        Example
        -------
        >>> EmotionSet(["fear", "fury", "sad", "sadness"]).codes
        ('fe', 'fu', 'sad', 'sadn')
        """
        return tuple(
            next(
                name[:length]
                for length in range(1, len(name) + 1)
                if length == len(name)
                or not any(other.startswith(name[:length]) for other in self.names if other != name)
            )
            for name in self.names
        )

    def index(self, name):
        """Return the class index (int) of a label's name.

        Raises
        ------
        InputError
            If the set has no such label.

        Example
        -------
        >>> PUBLISHED.index("sad")
        2
        """
        try:
            return self.names.index(name)
        except ValueError:
            known = ", ".join(self.names)
            raise InputError(f"unknown emotion {name!r}, not one of {known}") from None

    def need_neutral(self, what):
        """Return the class index of the neutral label, which ``what`` needs.

        Raises
        ------
        InputError
            If the set has no neutral label.

        Example
        -------
        >>> EmotionSet(["joy", "anger"]).need_neutral("segment_decoding single_event")
        Traceback (most recent call last):
        ...
        ent_brain.errors.InputError: segment_decoding single_event needs a neutral label, but \
emotions (joy, anger) have none. Set neutral to one of them, or make another choice.
        """
        if self.neutral is None:
            raise InputError(
                f"{what} needs a neutral label, but emotions ({', '.join(self.names)}) have none. "
                "Set neutral to one of them, or make another choice."
            )
        return self.neutral_index


def _is_name(name):
    return (
        0 < len(name) <= MOST_LETTERS
        and name == name.strip()
        and name == unicodedata.normalize("NFC", name)
        and name.casefold() not in ("null", "none", "true", "false", "yes", "no", "on", "off")
        and all(unicodedata.category(letter)[0] in "LMN" or letter in " _-" for letter in name)
        and any(unicodedata.category(letter)[0] == "L" for letter in name)
    )


def check_label_map(label_map, corpus, labels, emotions):
    """Check a recipe's mapping from a corpus's labels to its own.

    Arguments
    ---------
    label_map : dict[str, str | None]
        Name in ``emotions`` for each label of the corpus. Utterances whose label maps to None, or
        is missing here, are skipped.
    corpus : str
        The corpus's name, for error messages.
    labels : sequence of str
        All labels of the corpus.
    emotions : EmotionSet

    Returns
    -------
    dict[str, str]
        ``label_map`` without the skipped labels.

    Raises
    ------
    InputError
        If the corpus lacks a label, ``emotions`` lack a name, or all labels are skipped.

    Example
    -------
    >>> check_label_map({"exc": "happy", "fru": None}, "IEMOCAP", ["exc", "fru"], PUBLISHED)
    {'exc': 'happy'}
    >>> check_label_map({"joy": "happy"}, "IEMOCAP", ["exc", "fru"], PUBLISHED)
    Traceback (most recent call last):
    ...
    ent_brain.errors.InputError: label_map: IEMOCAP has no label 'joy', its labels are exc, fru: \
correct label_map
    """
    if not isinstance(label_map, dict):
        raise InputError(f"label_map: {label_map!r}: give a mapping, as {{exc: happy, sad: sad}}")
    problems = [
        f"label_map: {corpus} has no label {label!r}, its labels are {', '.join(labels)}"
        for label in label_map
        if label not in labels
    ]
    mapped = {label: name for label, name in label_map.items() if name is not None}
    problems += [
        f"label_map: {label} becomes {name!r}, which is not one of {', '.join(emotions)}"
        for label, name in mapped.items()
        if name not in emotions.names
    ]
    raise_problems(problems, "correct label_map")
    if not mapped:
        raise InputError(f"label_map: it leaves out every label of {corpus}: map some")
    return mapped


def describe_label_map(label_map, emotions):
    """Describe (str) which labels of a corpus become each emotion.

    Example
    -------
    >>> describe_label_map({"hap": "joy", "exc": "joy"}, EmotionSet(["joy", "fear"]))
    'joy from hap, exc; fear from nothing'
    """
    sources = {
        emotion: [label for label, name in label_map.items() if name == emotion]
        for emotion in emotions
    }
    return "; ".join(
        f"{emotion} from {', '.join(labels) or 'nothing'}" for emotion, labels in sources.items()
    )


PUBLISHED = EmotionSet(("happy", "angry", "sad", "neutral"), "neutral")
"""The label set of the paper and of the recipes that reproduce it."""
