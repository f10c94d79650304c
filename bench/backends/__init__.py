"""The measured programs: echo and fan-out with each library, in the style of its documentation."""
