"""Suppression of other libraries' warnings and progress bars."""

from contextlib import contextmanager


@contextmanager
def quiet_transformers(hide_bars=True):
    """Suppress the warnings of transformers and, if ``hide_bars``, its progress bars."""
    from transformers import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if hide_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
