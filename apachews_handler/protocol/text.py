"""UTF-8 across the pieces of a message (RFC 6455 8.1).

Contract: ``new_utf8_decoder()`` returns a decoder whose ``decode(piece, is_last)`` raises
``UnicodeDecodeError`` at the first byte that cannot be part of the text.  Pure.
"""

from __future__ import annotations

import codecs
from typing import Final

new_utf8_decoder: Final = codecs.getincrementaldecoder("utf-8")
