"""The command ``apachews``, and the administration of Apache that it needs."""
