"""The Debian packages, in chroots of Debian's releases."""
