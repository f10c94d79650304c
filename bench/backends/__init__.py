"""The programs that are measured: each library's echo and fan-out, as its documentation has it."""
