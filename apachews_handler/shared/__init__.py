"""What the processes of one Apache share: the run directory, limits, generations."""
