"""A server, and other processes, that live as long as a command on this machine: for the demo and for simulations."""
