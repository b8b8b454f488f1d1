"""The one exception for what a user can mend.

A message names what was given, the rule, and what to do. Programs print it as one line and exit with code 2; everything
else is a bug of ours or of the machine and keeps its traceback.
"""


class InputError(ValueError):
    """Bad input: an option, a file, a folder. The message is all that the user is shown."""


class Stopped(RuntimeError):
    """Training cannot go on, though the input was accepted: non-finite loss, too many unreadable videos. Exit code 70."""
