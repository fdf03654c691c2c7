"""Options, context and terminal output that commands share."""
