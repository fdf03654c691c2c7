"""Install, check and bake a node."""
