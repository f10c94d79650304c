"""The status of an Apache's bridges: the sealed records, and how they are collected."""
