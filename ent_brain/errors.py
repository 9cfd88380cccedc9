"""Errors in a user's input: a message of one line and a non-zero exit status."""

import errno
import signal
import sys

CANNOT_WRITE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
}
"""System error numbers of a full disk or a missing permission. They are no fault of the program."""

NO_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
"""System error numbers of a path that cannot be read or written."""

SHOWN_PROBLEMS = 5
"""Number of problems that a message lists. It only counts the others."""


INTERRUPTED = 130
"""Exit status after Ctrl-C, by the convention of shells: 128 plus the number of SIGINT."""


class InputError(Exception):
    r"""Wrong input. The message is one line: where, what is wrong, and what to do.

    Line breaks and other unprintable characters of the message are escaped. PyTorch wraps an error
    of a loader's worker in a traceback; only the original message is kept.

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
    """A process of a distributed training has stopped, so the others cannot continue."""

    def __init__(self):
        super().__init__(
            "a process of this training has stopped (see torchrun's output). Run the same command "
            "again to resume from the last checkpoint."
        )


CONNECTION_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""Parts of gloo's messages, in a RuntimeError, after the other process has ended."""


def raise_problems(problems, remedy):
    """Report all problems of an input together.

    Arguments
    ---------
    problems : list[str]
        One entry per problem, each with an id or a path. If the list is empty, nothing happens.
    remedy : str
        Instruction that ends the message.

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


def first_names(names):
    """Join the first names (list[str]) with commas, and count the others.

    Example
    -------
    >>> first_names(list("abcdefg"))
    'a, b, c, d, e and 2 more'
    """
    more = len(names) - SHOWN_PROBLEMS
    return ", ".join(names[:SHOWN_PROBLEMS]) + (f" and {more} more" if more > 0 else "")


def one_line(error, most=160):
    r"""Shorten an error's message to one line, to quote it in ours; its type if it has no message.

    Example
    -------
    >>> one_line(ValueError("too\n  long to be read"), 8)
    'too long'
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def exit_on_input_error(main):
    """Decorate the main function of a program: an ``InputError`` prints one line, with status 1.

    System errors of a full disk, a missing permission or a wrong path do the same. So does the end
    of another process in distributed training. Ctrl-C prints one line and exits with status 130.
    The line is the message of the ``KeyboardInterrupt``, or explains how to resume.

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
            path = error.filename2 or error.filename  # when copying, filename2 is the target
            if error.errno in CANNOT_WRITE:
                remedy = "Free disk space, or give the permission, and start again."
            elif error.errno in NO_PLACE and path:
                remedy = "Restore it, or name another path."
            else:
                raise
            where = f"{path}: " if path else ""
            problem = InputError(f"{where}{error.strerror}. {remedy}")
        except RuntimeError as error:
            if not _is_connection_lost(error):
                raise
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # not a second message from SIGTERM
            problem = ProcessEndedError()
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)

    return wrapped


def _is_connection_lost(error):
    of_torch = type(error).__module__ == "torch.distributed"
    return of_torch or any(text in str(error) for text in CONNECTION_LOST)
