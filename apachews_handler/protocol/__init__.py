"""Bytes in, bytes out: RFC 6455 and 7692, the wire, and their timeouts.  No I/O, no clock."""
