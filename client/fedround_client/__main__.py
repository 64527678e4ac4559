"""`python -m fedround_client` is the `fedround` command."""

from fedround_client.command import main

main()
