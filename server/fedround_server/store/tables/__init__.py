"""The tables, their migrations, and how rows become objects of the domain."""
