"""On Apache's worker: the upgrade, the origin, taking the connection from httpd."""
