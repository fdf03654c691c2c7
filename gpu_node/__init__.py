"""The agent on the GPU instance: it runs the services, and tells the proxy how they are.

Beside `qwenctl.wire` (the messages) it needs nothing of qwenctl, and of other packages only
requests, psutil and pydantic. Who owns what:

==============  ============================================================================
`agent`         the conversation with the proxy, the list of services, the way out
`service`       one service: start, readiness, restart after a crash, stop
`process`       the process runtime behind `runtime.Runtime`
`deadman`       how long no proxy has been heard, across restarts of the agent
`guard`         that nothing outlives the agent, however the agent ends
==============  ============================================================================
"""
