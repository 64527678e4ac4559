"""The live view of `fedround training watch`."""
