"""Libraries that say more than their users ask for."""

from contextlib import contextmanager


@contextmanager
def quiet_transformers(hide_bars=True):
    """Let transformers show no warnings and, if the files are here already, no progress bars."""
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
