"""What is counted, logged and shown."""
