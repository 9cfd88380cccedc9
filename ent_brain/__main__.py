"""The program ``ent-brain``. Ctrl-C prints one line, even while PyTorch is being imported."""

from ent_brain.errors import exit_on_input_error


@exit_on_input_error
def main():
    """Import the command line, which takes seconds, and run it."""
    from ent_brain.cli import main

    main()


if __name__ == "__main__":
    main()
