"""From a request's path to a connected socket of its producer."""
