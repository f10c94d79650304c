"""How a child of Apache begins and ends, and who carries its connections on."""
