"""Benchmarks of apachews against what else there is; ``bench/run`` runs them."""
