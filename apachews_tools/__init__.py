"""The command ``apachews``, and the administration of Apache behind it."""
