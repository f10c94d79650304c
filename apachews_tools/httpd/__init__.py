"""Apache httpd as a program: its configuration for apachews, and running one of our own."""
