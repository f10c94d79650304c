"""The producer's answer to OPEN, if Apache leaves the decision to it.

Contract: ``Answer`` is immutable data that its constructor checks; ``encode`` returns the
ANSWER frame, ``decode`` reads its payload.  Pure; used by the library and by the bridge, which
checks it again.

Sources: docs/reference/wire.md; RFC 9110 5.1, 5.5 (field names and values), 15. (status);
RFC 6455 4.2.2 (subprotocol).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from apachews.exceptions import WireError

from .documents import require_text
from .frames import ANSWER, encode_frame

# httpd itself does not limit a response.
MAX_ANSWER_BYTES: Final = 64 * 1024

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
# Visible characters, blanks inside, and obs-text: ISO 8859-1 as in OPEN.
_VALUE: Final = re.compile(r"[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?|")
# Headers that the handshake or httpd sets.
_OURS: Final = frozenset(
    ("connection", "content-length", "date", "keep-alive", "server", "trailer", "te")
) | {"transfer-encoding", "upgrade"}

Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The decision on a connection.

    Attributes:
        accepts: True accepts the client, False rejects it.
        subprotocol: of an accepted client: one that the client offered, or None.
        status: of a rejected client: the HTTP status, 300 to 599.
        headers: names and values to add to the response.
        body: of a rejected client: the body of the response; text/plain in UTF-8 unless a
            header says otherwise.

    Raises:
        ValueError: a value that is not allowed; the text names it.
    """

    accepts: bool
    subprotocol: str | None = None
    status: int = 403
    headers: tuple[Header, ...] = ()
    body: str = ""

    def __post_init__(self) -> None:
        if self.subprotocol is not None and not _TOKEN.fullmatch(self.subprotocol):
            raise ValueError(f"subprotocol {self.subprotocol!r:.80}: expected a token")
        if not 300 <= self.status <= 599:
            raise ValueError(f"status {self.status}: expected 300 to 599")
        for name, value in self.headers:
            if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
                raise ValueError(f"invalid header {name!r:.80}: {value!r:.80}")
            if name.lower() in _OURS or name.lower().startswith("sec-websocket-"):
                raise ValueError(f"header {name}: Apache sets it; omit it")

    @classmethod
    def accept(cls, subprotocol: str | None, headers: Iterable[Header]) -> Answer:
        """Return an acceptance; raises as the class does."""
        return cls(True, subprotocol, headers=tuple((name, value) for name, value in headers))

    @classmethod
    def reject(cls, status: int, headers: Iterable[Header], body: str) -> Answer:
        """Return a rejection; raises as the class does."""
        return cls(False, None, status, tuple((name, value) for name, value in headers), body)

    def encode(self) -> bytes:
        """Return the ANSWER frame.

        Raises:
            ValueError: it exceeds ``MAX_ANSWER_BYTES``.
        """
        document: dict[str, object] = {"accept": self.accepts, "headers": self.headers}
        if self.accepts:
            document["subprotocol"] = self.subprotocol
        else:
            document |= {"status": self.status, "body": self.body}
        payload = json.dumps(document, separators=(",", ":")).encode()
        if len(payload) > MAX_ANSWER_BYTES:
            raise ValueError(
                f"the answer has {len(payload)} bytes; the limit is {MAX_ANSWER_BYTES}"
            )
        return encode_frame(ANSWER, payload)

    @classmethod
    def decode(cls, payload: bytes) -> Answer:
        """Read the payload of an ANSWER frame; ignore unknown members.

        Raises:
            WireError: not a JSON object, or a member that is missing, of the wrong type or
                not allowed.
        """
        try:
            document = json.loads(payload.decode())
            headers = tuple(
                (require_text(name), require_text(value)) for name, value in document["headers"]
            )
            if document["accept"] is True:
                subprotocol = document.get("subprotocol")
                return cls.accept(
                    None if subprotocol is None else require_text(subprotocol), headers
                )
            if document["accept"] is not False:
                raise TypeError('"accept" is neither true nor false')
            status = document["status"]
            if type(status) is not int:
                raise TypeError(f"status {status!r:.80} is not a number")
            return cls.reject(status, headers, require_text(document.get("body", "")))
        except KeyError as error:
            raise WireError(f"invalid ANSWER: missing member {error}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise WireError(f"invalid ANSWER: {error}") from error
