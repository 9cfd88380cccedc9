"""The label set: the order, the names and the one-letter codes of the emotions."""

EMOTIONS = ("happy", "angry", "sad", "neutral")
"""Emotion names; the position of a name is its class index everywhere."""

NEUTRAL = EMOTIONS.index("neutral")
"""Class index of neutral."""


def emotion_index(name):
    """Return the class index of an emotion.

    Arguments
    ---------
    name : str
        One of ``EMOTIONS``.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If the name is not an emotion of the label set.

    Example
    -------
    >>> emotion_index("sad")
    2
    """
    try:
        return EMOTIONS.index(name)
    except ValueError:
        raise ValueError(f"unknown emotion {name!r}: use one of {', '.join(EMOTIONS)}") from None


def emotion_letter(index):
    """Return the one-letter code of a class index: h, a, s or n.

    Example
    -------
    >>> "".join(emotion_letter(i) for i in range(4))
    'hasn'
    """
    return EMOTIONS[index][0]
