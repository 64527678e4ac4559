"""Simulations: a training with a real server and many clients on one machine."""
