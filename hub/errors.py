"""What Hutch raises when it knows what is wrong. The command line shows the message as one line and exits with 1."""


class HutchError(Exception):
    """The message says what was asked, what is wrong, and what to do."""
