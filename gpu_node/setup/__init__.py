"""Install, check and bake a node."""

COMMANDS = {
    "install": "make it a systemd service with a watchdog; run again after an upgrade",
    "uninstall": "stop the service and remove it; state, settings and logs stay",
    "status": "is the agent running, when was a proxy heard, how are the services",
    "logs": "the agent's log, or a service's",
    "doctor": "check everything that this node needs, and say how to mend what is wrong",
    "bake": "make this instance ready for a snapshot or an image of it",
    "watchdog": "stop this instance if nobody is in charge of it (a timer does the same)",
}
"""Command -> what it does."""
