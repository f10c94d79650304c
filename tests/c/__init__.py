"""libapachews, bindings/c: built, and tried as programs in C."""
