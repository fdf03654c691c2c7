"""Alibaba Cloud ECS."""
