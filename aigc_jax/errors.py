"""A user's mistake, told in one line that names the thing and the remedy."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input: the command line prints the message alone and exits with code 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest of `known`, else the list of all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}."
