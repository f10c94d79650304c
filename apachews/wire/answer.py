"""The producer's answer to OPEN, where Apache leaves the decision to it.

Contract: ``Answer`` is data that was checked when it was made; ``encode`` gives the
ANSWER frame, ``decode`` reads its payload.  Pure; used by the library and by the
bridge, which believes no producer.

Sources: docs/reference/wire.md; RFC 9110 5.1, 5.5 (field names and values), 15. (status);
RFC 6455 4.2.2 (subprotocol).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from apachews import wire
from apachews.exceptions import WireError

# What an HTTP response may sensibly carry; httpd itself has no limit here.
MAX_ANSWER_BYTES: Final = 64 * 1024

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
# Visible characters, blanks between them, and obs-text: ISO 8859-1 as in OPEN.
_VALUE: Final = re.compile(r"[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?|")
# What the handshake itself, or httpd, must have in hand.
_OURS: Final = frozenset(
    ("connection", "content-length", "date", "keep-alive", "server", "trailer", "te")
) | {"transfer-encoding", "upgrade"}

Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """Yes or no to a connection.

    Attributes:
        accepts: whether it becomes a WebSocket.
        subprotocol: with yes, one of those the client offered, or None.
        status: with no, the HTTP status, 300 to 599.
        headers: names and values to add to the response.
        body: with no, the body of the response; text/plain in UTF-8 unless a
            header says otherwise.

    Raises:
        ValueError: a value that may not be sent; the text says which.
    """

    accepts: bool
    subprotocol: str | None = None
    status: int = 403
    headers: tuple[Header, ...] = ()
    body: str = ""

    def __post_init__(self) -> None:
        if self.subprotocol is not None and not _TOKEN.fullmatch(self.subprotocol):
            raise ValueError(f"the subprotocol {self.subprotocol!r:.80} is no token")
        if not 300 <= self.status <= 599:
            raise ValueError(f"status {self.status} does not refuse: use 300 to 599")
        for name, value in self.headers:
            if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
                raise ValueError(f"the header {name!r:.80}: {value!r:.80} may not be sent")
            if name.lower() in _OURS or name.lower().startswith("sec-websocket-"):
                raise ValueError(f"the header {name} is not the producer's to set")

    @classmethod
    def accept(cls, subprotocol: str | None, headers: Iterable[Header]) -> Answer:
        """Return a yes; raises as the class does."""
        return cls(True, subprotocol, headers=tuple((name, value) for name, value in headers))

    @classmethod
    def reject(cls, status: int, headers: Iterable[Header], body: str) -> Answer:
        """Return a no; raises as the class does."""
        return cls(False, None, status, tuple((name, value) for name, value in headers), body)

    def encode(self) -> bytes:
        """Return the ANSWER frame.

        Raises:
            ValueError: it has more than ``MAX_ANSWER_BYTES``.
        """
        document: dict[str, object] = {"accept": self.accepts, "headers": self.headers}
        if self.accepts:
            document["subprotocol"] = self.subprotocol
        else:
            document |= {"status": self.status, "body": self.body}
        payload = json.dumps(document, separators=(",", ":")).encode()
        if len(payload) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer has {len(payload)} bytes; at most {MAX_ANSWER_BYTES} go")
        return wire.encode_frame(wire.ANSWER, payload)

    @classmethod
    def decode(cls, payload: bytes) -> Answer:
        """Read the payload of an ANSWER frame; members it does not know are ignored.

        Raises:
            WireError: no JSON object, or a member that is missing, of the wrong
                type or may not be sent.
        """
        try:
            document = json.loads(payload.decode())
            headers = tuple(
                (wire.require_text(name), wire.require_text(value))
                for name, value in document["headers"]
            )
            if document["accept"] is True:
                subprotocol = document.get("subprotocol")
                return cls.accept(
                    None if subprotocol is None else wire.require_text(subprotocol), headers
                )
            if document["accept"] is not False:
                raise TypeError('"accept" is neither true nor false')
            status = document["status"]
            if type(status) is not int:
                raise TypeError(f"the status {status!r:.80} is no number")
            return cls.reject(status, headers, wire.require_text(document.get("body", "")))
        except KeyError as error:
            raise WireError(f"the ANSWER lacks the member {error}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise WireError(
                f"the ANSWER is not as docs/reference/wire.md has it: {error}"
            ) from error
