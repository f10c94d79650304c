"""One attempt to connect to an endpoint, and the check of the links that lead to it."""
