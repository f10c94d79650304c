"""The language that a browser prefers.

Contract: a pure function.  Source: RFC 9110 12.5.4 and 12.4.2.
"""

from __future__ import annotations


def preferred_language(accept_language: str) -> str | None:
    """Return the language tag with the greatest weight, the first of equals.

    Args:
        accept_language: the value of the header, or "".

    Returns:
        The tag as the browser wrote it (``en-GB``), or None if it names none: ``*``, weight
        0 and malformed items do not count.
    """
    best: str | None = None
    best_weight = 0.0
    for item in accept_language.split(","):
        tag, _, parameter = item.partition(";")
        tag, parameter = tag.strip(), parameter.strip().lower()
        weight = 1.0
        if parameter:
            try:
                weight = float(parameter.removeprefix("q=")) if parameter[:2] == "q=" else 0.0
            except ValueError:
                weight = 0.0
        if tag and tag != "*" and best_weight < weight <= 1.0:
            best, best_weight = tag, weight
    return best
