"""What a person is told when the input is wrong: one line, and an exit status that is not 0."""

import errno
import sys

CANNOT_WRITE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
}
"""What the system says where a disk is full or a permission is missing: no fault of a program."""

SHOWN_PROBLEMS = 5
"""How many of several problems the one line spells out; the rest are counted."""


class InputError(Exception):
    r"""The input is wrong: the message is one line that says what, where and what to do.

    Characters of the input that are not printed, line ends among them, are written out.

    Example
    -------
    >>> print(InputError("two\nlines: no such file"))
    two\nlines: no such file
    """

    def __init__(self, message):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def raise_problems(problems, remedy):
    """Report all problems of an input together.

    Arguments
    ---------
    problems : list[str]
        One entry a problem, each naming an id or a path; nothing happens where it is empty.
    remedy : str
        What to do about them.

    Raises
    ------
    InputError
        If there is a problem.

    Example
    -------
    >>> raise_problems([], "nothing to do")
    >>> raise_problems(["a.wav: empty", "b.wav: empty"], "remove them")
    Traceback (most recent call last):
    ...
    ent_brain.errors.InputError: 2 problems: a.wav: empty; b.wav: empty: remove them
    """
    if not problems:
        return
    shown = "; ".join(problems[:SHOWN_PROBLEMS])
    hidden = len(problems) - SHOWN_PROBLEMS
    more = f"; and {hidden} more" if hidden > 0 else ""
    count = f"{len(problems)} problems: " if len(problems) > 1 else ""
    raise InputError(f"{count}{shown}{more}: {remedy}")


def exit_on_input_error(main):
    """Decorate the main function of a program: an ``InputError`` becomes one line and status 1.

    So does what the system says where the disk is full or a permission is missing.

    Arguments
    ---------
    main : callable

    Returns
    -------
    callable
    """

    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            path = error.filename2 or error.filename  # a copy names what it is of, first
            where = f"{path}: " if path else ""
            remedy = "make room, or give the permission, and start again"
            print(f"error: {where}{error.strerror}: {remedy}", file=sys.stderr)
            sys.exit(1)

    return wrapped
