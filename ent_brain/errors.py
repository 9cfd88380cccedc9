"""What a person is told when the input is wrong: one line, and an exit status that is not 0."""

import errno
import signal
import sys

CANNOT_WRITE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
}
"""What the system says where a disk is full or a permission is missing: no fault of a program."""

NO_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
"""What the system says of a path at which nothing can be read or written."""

SHOWN_PROBLEMS = 5
"""How many of several problems the one line spells out; the rest are counted."""


INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT."""


class InputError(Exception):
    r"""The input is wrong: the message is one line that says what, where and what to do.

    Characters of the input that are not printed, line ends among them, are written out. Of one that
    PyTorch brings from a loader's worker, in which it is the end of a traceback, the line is kept.

    Example
    -------
    >>> print(InputError("two\nlines: no such file"))
    two\nlines: no such file
    """

    def __init__(self, message):
        if message.startswith("Caught InputError in "):
            message = message.rstrip().rpartition("\n")[2].partition(": ")[2]
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class ProcessEndedError(InputError):
    """One of several processes that train together is gone, so that the others cannot go on."""

    def __init__(self):
        super().__init__(
            "another process of this training has ended, or all were told to: torchrun tells "
            "which: give the same command again, and it goes on from its last checkpoint"
        )


CONNECTION_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says, in a RuntimeError, where the process at the other end is gone."""


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


def one_line(error, most=160):
    r"""What an error says, to be quoted in one of ours; its kind where it says nothing.

    Example
    -------
    >>> one_line(ValueError("too\n  long to be read"), 8)
    'too long'
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def exit_on_input_error(main):
    """Decorate the main function of a program: an ``InputError`` becomes one line and status 1.

    So does what the system says where the disk is full, a permission is missing or a path leads
    nowhere, and the end of another of several processes. Ctrl-C becomes one line and status 130:
    what the ``KeyboardInterrupt`` says, or how to go on.

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
            problem = error
        except KeyboardInterrupt as error:
            message = str(error) or "run the same command again to resume"
            print(f"interrupted: {message}", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except OSError as error:
            path = error.filename2 or error.filename  # a copy names what it is of, first
            if error.errno in CANNOT_WRITE:
                remedy = "make room, or give the permission, and start again"
            elif error.errno in NO_PLACE and path:
                remedy = "bring it back, or name another path"
            else:
                raise
            where = f"{path}: " if path else ""
            problem = InputError(f"{where}{error.strerror}: {remedy}")
        except RuntimeError as error:
            if not _is_connection_lost(error):
                raise
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # no second end while this one is told
            problem = ProcessEndedError()
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)

    return wrapped


def _is_connection_lost(error):
    of_torch = type(error).__module__ == "torch.distributed"
    return of_torch or any(text in str(error) for text in CONNECTION_LOST)
