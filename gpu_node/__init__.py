"""The agent on the GPU instance: it runs the services and reports them to the proxy.

It imports `qwenctl.protocol` and small parts of `qwenctl.lib`, and of other packages only requests,
psutil and pydantic.

==============  ============================================================================
`agent`         the conversation with the proxy, the list of services, the end
`services`      one service (`supervisor`), as a process or a container, and its probes
`machine`       GPUs, resources, metadata and interruption notices of the instance
`selfstop`      how long no proxy has been heard, and stopping the own instance then
`setup`         install, check and bake a node
==============  ============================================================================
"""
