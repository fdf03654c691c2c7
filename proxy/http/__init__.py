"""HTTP: requests, problems, cookies, the server, metrics."""
