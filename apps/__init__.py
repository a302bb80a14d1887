"""The command line and the explorer. No mathematics here: the rooms below do the work."""
