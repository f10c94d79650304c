"""The engine of ``Server``: its loop, its connections, published messages."""
