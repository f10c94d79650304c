"""Broadcasts between producers: Redis or Valkey, and the workers of one machine."""
