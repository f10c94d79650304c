"""C by ctypes: httpd, OpenSSL, and system calls that keep the GIL.  Nothing of ours above it."""
