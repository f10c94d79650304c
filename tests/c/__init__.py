"""Tests of libapachews, bindings/c."""
