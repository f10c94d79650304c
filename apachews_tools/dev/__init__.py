"""Running a site for development: supervised programs, reloads."""
