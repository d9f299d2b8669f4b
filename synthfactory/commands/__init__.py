"""The commands, one file a theme; each parses, prints the plan and calls one function."""
