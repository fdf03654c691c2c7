"""The always-on proxy: data plane, control plane and reconciler in one process.

Installed as `qwenctl_proxy` (docs/decisions/0001-the-name-proxy.md); imports inside are relative.
"""
