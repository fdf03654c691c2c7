"""Every setting of qwenctl, typed."""
