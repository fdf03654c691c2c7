"""Real parts for tests: a Valkey server, proxy processes, a WebUI, an account of what they did."""
