"""Alibaba Cloud ecs."""
