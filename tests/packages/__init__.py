"""Tests of what is distributed: source archive, wheels, packages."""
