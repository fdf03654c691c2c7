"""One light module a command: its signature and help, and one import of its body when it runs."""
