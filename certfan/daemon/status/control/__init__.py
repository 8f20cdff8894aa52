"""The writing routes and the long work of the command line, on the control socket only."""
