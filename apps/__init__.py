"""The command line and the viewer."""
