"""Several processes behind one endpoint, and what a supervisor tells and is told."""
