"""The wire, version 1: what crosses the Unix socket between bridge and producer.

Frames of RFC 6455, never masked, in both directions, after one OPEN frame from the bridge.
docs/reference/wire.md is the specification; this package is its only implementation in
Python, used by the library and by the bridge.

Contract: data, pure functions and constants; no I/O.  ``frames`` has the header codec, opcodes
and close codes; ``documents`` OPEN and PUBLISH; ``messages`` the frame of one message.
``answer`` (ANSWER), ``channel`` (groups at the edge) and ``reader`` (frames joined to messages)
are imported on their own.
"""

from __future__ import annotations

from .documents import (
    TLS,
    VERSION,
    Open,
    Publish,
    Published,
    optional_text,
    require_text,
)
from .frames import (
    ABNORMAL,
    ANSWER,
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    GOING_AWAY,
    INTERNAL_ERROR,
    INVALID_DATA,
    LANE,
    MASKED,
    MAX_CONTROL_BYTES,
    MAX_OPEN_BYTES,
    MAX_REASON_BYTES,
    MOVE,
    NO_CODE,
    NORMAL,
    OPCODE,
    OPEN,
    PING,
    POLICY_VIOLATION,
    PONG,
    PROTOCOL_ERROR,
    PUBLISH,
    RSV,
    SERVICE_RESTART,
    TEXT,
    TOO_BIG,
    TRY_AGAIN_LATER,
    WHOLE_MESSAGES,
    WHOLE_TEXT,
    Close,
    decode_close,
    decode_header,
    encode_close,
    encode_frame,
    encode_header,
    is_sendable_code,
    truncate_reason,
)
from .messages import decode_json, encode_json, encode_message
from .violation import Violation

__all__ = [
    "ABNORMAL",
    "ANSWER",
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "FIN",
    "GOING_AWAY",
    "INTERNAL_ERROR",
    "INVALID_DATA",
    "LANE",
    "MASKED",
    "MAX_CONTROL_BYTES",
    "MAX_OPEN_BYTES",
    "MAX_REASON_BYTES",
    "MOVE",
    "NORMAL",
    "NO_CODE",
    "OPCODE",
    "OPEN",
    "PING",
    "POLICY_VIOLATION",
    "PONG",
    "PROTOCOL_ERROR",
    "PUBLISH",
    "RSV",
    "SERVICE_RESTART",
    "TEXT",
    "TLS",
    "TOO_BIG",
    "TRY_AGAIN_LATER",
    "VERSION",
    "WHOLE_MESSAGES",
    "WHOLE_TEXT",
    "Close",
    "Open",
    "Publish",
    "Published",
    "Violation",
    "decode_close",
    "decode_header",
    "decode_json",
    "encode_close",
    "encode_frame",
    "encode_header",
    "encode_json",
    "encode_message",
    "is_sendable_code",
    "optional_text",
    "require_text",
    "truncate_reason",
]
