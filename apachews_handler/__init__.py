"""Apache httpd as a WebSocket server: the side that runs inside Apache's children.

``wsgi`` has the entry points for mod_wsgi; the other modules are its parts.
"""
