"""The agent on the GPU instance: it runs the services and reports them to the proxy.

It imports `qwenctl.protocol` and small parts of `qwenctl.lib`, and of other packages only requests,
psutil and pydantic.

==============  ============================================================================
`agent`         runs the services, until the end
`conversation`  what is said to the proxy, and when; `client` sends it
`services`      one service (`supervisor`), as a process or a container, and its probes
`machine`       GPUs, resources, metadata and interruption notices of the instance
`selfstop`      how long no proxy has been heard, and stopping the own instance then
`setup`         install, check and bake a node
==============  ============================================================================
"""
