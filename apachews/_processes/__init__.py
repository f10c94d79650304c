"""Worker processes of one endpoint, supervision of processes, signals, sd_notify."""
