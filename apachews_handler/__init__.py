"""Apache httpd as a WebSocket server: the side that runs inside Apache's children.

``entry_points`` has the entry points for mod_wsgi, which loads ``wsgi.py``; the other modules are
its parts.
"""
