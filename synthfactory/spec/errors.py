"""The one error a user can mend by changing what was given: a spec, an option, a file."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from the user; the message names the file or field, what is wrong and what would be right.

    The command line prints the message alone (no traceback) and exits with status 2.
    """
