"""The dashboard: pages about trainings for a browser, made of calls to a server with the token of each visitor."""
