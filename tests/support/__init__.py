"""Real parts for tests: a Valkey server, proxy processes, a WebUI, an account of what they did.

A test that needs an HTTP server with fixed or computed answers takes ``httpserver`` of
pytest-httpserver. Written by hand remain those of which it cannot do the job: `fake_ecs`, `faults`
and `docker_engine` break off, delay and forward answers byte by byte; `stand_in_proxy` ends kept
connections as a process that dies does; `metadata` hangs and has a clock of its own (Werkzeug writes
its own ``Date``); `webui` and `openai_api` stream; `service_program` and ``e2e/odd_webui`` are
programs that the agent starts. In single tests, `test_agentless` hangs up and promises a body of
1 TiB, and the proxy's tests speak in bytes.
"""
