"""One message: its frame, and JSON texts as messages.

Contract: pure functions.  A message is str (a TEXT frame) or bytes (a BINARY frame).
"""

from __future__ import annotations

import json
from typing import Any, Final

from .frames import BINARY, FIN, TEXT, encode_header

_TEXT_WHOLE: Final = FIN | TEXT
_BINARY_WHOLE: Final = FIN | BINARY


def encode_message(data: str | bytes | bytearray | memoryview) -> bytes:
    """Return the frame of one message: TEXT for str, BINARY for bytes-like objects.

    Raises:
        TypeError: neither str nor bytes-like.
        UnicodeEncodeError: text with surrogates.
    """
    if isinstance(data, str):
        first, payload = _TEXT_WHOLE, data.encode()
    elif isinstance(data, (bytes, bytearray, memoryview)):
        first, payload = _BINARY_WHOLE, bytes(data)
    else:
        raise TypeError(f"a message must be str or bytes, not {type(data).__name__}: {data!r:.80}")
    length = len(payload)
    # Fast path: the header of a short message without another call.
    return (bytes((first, length)) if length < 126 else encode_header(first, length)) + payload


def encode_json(value: Any) -> bytes:
    """Return the frame of one message that is the JSON text of a value.

    Raises:
        TypeError, ValueError: see ``Client.send_json``.
    """
    # RFC 8259 6 has no NaN and no Infinity, though Python's json would write them.
    return encode_message(
        json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    )


def decode_json(message: str | bytes) -> Any:
    """Return the value of a JSON text; a binary message must be UTF-8.

    Raises:
        ValueError: not a JSON text, or nested too deeply.
    """
    try:
        # Decoded here: json.loads() would accept UTF-16 and UTF-32 for bytes as well.
        text = message if isinstance(message, str) else message.decode()
        return json.loads(text, parse_constant=_reject_constant)
    except RecursionError as error:
        raise ValueError("the JSON text is nested too deeply") from error


def _reject_constant(name: str) -> None:
    """Reject NaN and Infinity, which Python's json accepts and RFC 8259 does not have."""
    raise ValueError(f"invalid JSON: {name}")
